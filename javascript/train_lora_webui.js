/* The WebUI around the page: its prompt, its Lora cards, its checkpoint. Without a WebUI there is none of it, and nothing happens. */
(window.trainLora = window.trainLora || {parts: {}}).parts.webui = (kit) => {
    'use strict';
    const {h, outside} = kit;

    const promptBox = () => outside().querySelector('#txt2img_prompt textarea');

    /** Let the WebUI's Lora cards show a file that was just written. */
    function refreshCards() {
        for (const tab of ['txt2img', 'img2img']) {
            const refresh = outside().querySelector(`#${tab}_lora_extra_refresh_internal`);
            if (refresh) refresh.click();
        }
    }

    /** Put a tag (and the trigger word) into txt2img's prompt, unless they are there, and go there. */
    function sendToPrompt(tag, trigger) {
        const box = promptBox();
        const words = [trigger, tag].filter((word) => word && !box.value.includes(word));
        if (words.length) {
            box.value = [box.value.replace(/[\s,]+$/, ''), words.join(' ')].filter(Boolean).join(', ');
            box.dispatchEvent(new Event('input', {bubbles: true}));
        }
        const tabs = outside().querySelector('#tabs');
        if (typeof window.switch_to_txt2img === 'function') window.switch_to_txt2img();
        else if (tabs) tabs.querySelector('button').click();
        box.focus();
    }

    /** A checkpoint as people call it: "models/dreamy_v5.safetensors [0123456789]" is dreamy_v5. */
    const checkpointName = (title) => String(title || '').replace(/\s*\[[0-9a-f]{6,}\]\s*$/i, '').replace(/^.*[\\/]/, '').replace(/\.(safetensors|ckpt)$/i, '');

    /** Let the WebUI's checkpoint list show what the server has just loaded, under the title it has there. The WebUI sees that it is loaded and loads nothing. */
    function showCheckpoint(name) {
        if (!name || typeof window.selectCheckpoint !== 'function' || !outside().querySelector('#change_checkpoint')) return;
        const {components = []} = window.gradio_config || {};
        const list = components.find((each) => each && each.props && each.props.elem_id === 'setting_sd_model_checkpoint');
        const titles = ((list && list.props.choices) || []).map((choice) => (Array.isArray(choice) ? choice[choice.length - 1] : choice));
        window.selectCheckpoint(titles.find((title) => checkpointName(title) === checkpointName(name)) || name);
    }

    async function copy(text) {
        if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
        const box = h('textarea', {value: text});
        (document.querySelector('dialog[open]') || document.body).append(box);             // Beside a dialog nothing can be selected.
        box.select();
        document.execCommand('copy');
        box.remove();
        return undefined;
    }

    /** A button that copies, and says so for a moment. */
    function copyButton(text, {label = 'Copy', title = ''} = {}) {
        const control = h('button.tl-button', {type: 'button', title, onclick: async () => {
            await copy(typeof text === 'function' ? text() : text);
            control.textContent = 'Copied';
            setTimeout(() => { control.textContent = label; }, 1500);
        }}, label);
        return control;
    }

    return {promptBox, checkpointName, refreshCards, sendToPrompt, showCheckpoint, copy, copyButton};
};
