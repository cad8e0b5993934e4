/* In the WebUI: a button under the galleries of txt2img and img2img that puts a picture, with its prompt as caption, into a data set. */
(window.trainLora = window.trainLora || {parts: {}}).parts.gallery = (kit) => {
    'use strict';
    const {h, icon, toast, outside, openTab} = kit;

    const TABS = ['txt2img', 'img2img'];

    /** Add the buttons where the WebUI has drawn its own; safe to call again and again. `receive(files)` takes {file, name}. */
    function addGalleryButtons(receive) {
        for (const tab of TABS) {
            const row = outside().querySelector(`#image_buttons_${tab}`);
            const neighbour = row && row.querySelector('button.tool');
            if (!neighbour || row.querySelector(`#${tab}_send_to_train_lora`)) continue;
            const made = h('button', {type: 'button', id: `${tab}_send_to_train_lora`, title: 'Send image to Train LoRA, with its prompt as caption.',
                'aria-label': 'Send image to Train LoRA', onclick: () => send(tab, made, receive)}, icon('addPicture'));
            made.className = neighbour.className;
            made.style.padding = '0';
            const form = [...row.querySelectorAll('button.tool')].pop();
            form.after(made);
        }
    }

    /** The picture that is selected in a gallery, or its only one. */
    function selectedPicture(tab) {
        const gallery = outside().querySelector(`#${tab}_gallery`);
        const thumbnails = gallery ? [...gallery.querySelectorAll('.thumbnail-item img, .grid-container img')] : [];
        const selected = gallery && gallery.querySelector('.thumbnail-item.selected img');
        const large = gallery && gallery.querySelector('.preview > img, .preview img[data-testid="detailed-image"]');
        const one = thumbnails.length === 1 ? thumbnails[0] : null;
        return {image: selected || large || one, any: thumbnails.length > 0};
    }

    async function send(tab, made, receive) {
        const {image, any} = selectedPicture(tab);
        if (!image) return toast(any ? 'Click the picture you want first.' : 'There is no picture yet.');
        made.disabled = true;
        try {
            const answer = await fetch(image.src, {credentials: 'same-origin'});
            if (!answer.ok) throw new Error(`The picture cannot be read (status ${answer.status}).`);
            const blob = await answer.blob();
            const {name, added} = await receive([{file: blob, name: nameOf(image.src, blob)}]);
            toast(added.length ? `Added to ${name}` : `Already in ${name}`, {label: 'Open', act: openTab});
        } catch (error) {
            toast(`Not added: ${error.message}`);
        } finally {
            made.disabled = false;
        }
        return undefined;
    }

    /** The file's own name; a picture that was not saved on disk gets one from the moment. */
    function nameOf(address, blob) {
        const last = decodeURIComponent(new URL(address, document.baseURI).pathname.split('/').pop() || '');
        const ending = {'image/jpeg': 'jpg', 'image/webp': 'webp'}[blob.type] || 'png';
        const own = /\.(png|jpe?g|webp)$/i.test(last) && !/^(image|tmp)/i.test(last);
        return own ? last : `generated-${new Date().toISOString().replace(/\D/g, '')}.${ending}`;
    }

    return {addGalleryButtons};
};
