/* In the WebUI: buttons under the galleries of txt2img and img2img that put a picture, or all of a batch, into a data set, with prompts as captions. */
(window.trainLora = window.trainLora || {parts: {}}).parts.gallery = (kit) => {
    'use strict';
    const {h, icon, toast, outside, openTab} = kit;

    const TABS = ['txt2img', 'img2img'];
    const KINDS = [                                                                        // Of buttons, in their order.
        {id: 'send_to_train_lora', sign: 'addPicture', one: true, title: 'Send image to Train LoRA, with its prompt as caption.'},
        {id: 'send_all_to_train_lora', sign: 'addPictures', one: false, title: 'Send all images of this batch to Train LoRA, each with its prompt as caption.'},
    ];

    /** Add the buttons where the WebUI has drawn its own; safe to call again and again. `receive(files)` takes {file, name}. */
    function addGalleryButtons(receive) {
        for (const tab of TABS) {
            const row = outside().querySelector(`#image_buttons_${tab}`);
            const neighbour = row && row.querySelector('button.tool');
            if (!neighbour || row.querySelector(`#${tab}_${KINDS[0].id}`)) continue;
            const made = KINDS.map(({id, sign, one, title}) => h('button', {type: 'button', id: `${tab}_${id}`, title, 'aria-label': title.replace(/,.*/, ''),
                onclick: () => send(() => (one ? chosen(tab) : batch(tab)), made, receive)}, icon(sign)));
            for (const each of made) {
                each.className = neighbour.className;
                each.style.padding = '0';
            }
            [...row.querySelectorAll('button.tool')].pop().after(...made);
        }
    }

    /** The pictures of a gallery, each once: it may show them large, in a line and in a grid. */
    function thumbnails(tab) {
        const gallery = outside().querySelector(`#${tab}_gallery`);
        const found = gallery ? [...gallery.querySelectorAll('.thumbnail-item img, .grid-container img')] : [];
        return [...new Map(found.map((image) => [image.src, image])).values()];
    }

    /** The picture that is selected in a gallery, or its only one. Throws a sentence for the user. */
    function chosen(tab) {
        const gallery = outside().querySelector(`#${tab}_gallery`);
        const all = thumbnails(tab);
        const selected = gallery && gallery.querySelector('.thumbnail-item.selected img');
        const large = gallery && gallery.querySelector('.preview > img, .preview img[data-testid="detailed-image"]');
        const image = selected || large || (all.length === 1 ? all[0] : null);
        if (!image) throw new Error(all.length ? 'Click the picture you want first, or send all of them.' : 'There is no picture yet.');
        return [image.src];
    }

    /** All pictures of a batch, without the grid that the WebUI puts before them. */
    function batch(tab) {
        const all = thumbnails(tab);
        if (!all.length) throw new Error('There is no picture yet.');
        return (isGrid(all) ? all.slice(1) : all).map((image) => image.src);
    }

    /** The first picture is a grid where it is called so, or is larger than the others, which are of one size. */
    function isGrid([first, ...others]) {
        if (!others.length) return false;
        const sizes = new Set(others.map((image) => `${image.naturalWidth}x${image.naturalHeight}`));
        const larger = first.naturalWidth * first.naturalHeight > others[0].naturalWidth * others[0].naturalHeight;
        return /^grid-\d/.test(fileIn(first.src)) || (others.length > 1 && sizes.size === 1 && larger);
    }

    /** Fetch pictures and hand them over; one that cannot be read keeps no other back. `find` is the list, or what throws. */
    async function send(find, made, receive) {
        made.forEach((each) => { each.disabled = true; });
        try {
            const read = await Promise.allSettled(find().map(fetched));
            const files = read.filter(({status}) => status === 'fulfilled').map(({value}) => value);
            if (!files.length) throw read[0].reason;
            const {name, added, refused} = await receive(files);
            const lost = read.length - files.length + refused.length;
            const what = added.length ? `Added ${added.length > 1 ? `${added.length} ` : ''}to ${name}` : `Already in ${name}`;
            toast(lost ? `${what}; ${lost} could not be added` : what, {label: 'Open', act: openTab});
        } catch (error) {
            toast(`Not added: ${error.message}`);
        } finally {
            made.forEach((each) => { each.disabled = false; });
        }
    }

    async function fetched(address, number) {
        const answer = await fetch(address, {credentials: 'same-origin'});
        if (!answer.ok) throw new Error(`The picture cannot be read (status ${answer.status}).`);
        const blob = await answer.blob();
        return {file: blob, name: nameOf(address, blob, number)};
    }

    const fileIn = (address) => decodeURIComponent(new URL(address, document.baseURI).pathname.split('/').pop() || '');

    /** The file's own name; a picture that was not saved on disk gets one from the moment. */
    function nameOf(address, blob, number) {
        const last = fileIn(address);
        const ending = {'image/jpeg': 'jpg', 'image/webp': 'webp'}[blob.type] || 'png';
        const own = /\.(png|jpe?g|webp)$/i.test(last) && !/^(image|tmp)/i.test(last);
        return own ? last : `generated-${new Date().toISOString().replace(/\D/g, '')}${number ? `-${number + 1}` : ''}.${ending}`;
    }

    return {addGalleryButtons};
};
