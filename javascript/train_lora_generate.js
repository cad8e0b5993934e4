/* Step 4, on the standalone page: draw with the LoRA. */
(window.trainLora = window.trainLora || {parts: {}}).parts.generate = (kit) => {
    'use strict';
    const {h, show, setText, button, card, send} = kit;

    /** LoRAs that a prompt names without the brackets that call them, such as lora:mycat:0.9. */
    const bareLoras = (text) => text.replace(/<[^<>]*>/g, ' ').match(/(?<![\w<])(?:lora|lyco):[^:,<>\n]+:-?[\d.]+/gi) || [];

    function createGenerate() {
        let shownUrl = '';
        const input = (id, label, value, mode = 'numeric') => {
            const control = h('input.tl-input', {id, type: 'text', inputMode: mode, value, autocomplete: 'off'});
            return {control, element: h('div.tl-field', {}, h('label.tl-label', {htmlFor: id}, label), control)};
        };
        const prompt = h('textarea.tl-input.tl-prompt', {id: 'tl-prompt', rows: 2, placeholder: 'What to draw; <lora:name:0.8> calls a LoRA', spellcheck: false,
            oninput: () => advise(), onkeydown: (event) => event.key === 'Enter' && (event.ctrlKey || event.metaKey) && draw()});
        const advice = h('p.tl-help', {role: 'status', hidden: true});
        const negative = h('input.tl-input', {id: 'tl-negative', type: 'text', autocomplete: 'off'});
        const seed = input('tl-seed', 'Seed', '1');
        const steps = input('tl-steps', 'Steps', '25');
        const guidance = input('tl-guidance', 'Guidance', '5', 'decimal');
        const size = input('tl-size', 'Size (px)', '');
        const go = button('Generate', () => draw(), 'primary');
        go.id = 'tl-draw';
        const error = h('p.tl-error', {role: 'alert', hidden: true});
        const picture = h('img.tl-drawn', {alt: '', hidden: true});
        const empty = h('p.tl-muted', {}, 'The picture appears here.');
        const element = card(4, 'Try it', h('div.tl-generate', {},
            h('div.tl-generate-form', {}, h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-prompt'}, 'Prompt'), prompt, advice),
                h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-negative'}, 'Negative prompt'), negative),
                h('div.tl-fields.tl-narrow', {}, seed.element, steps.element, guidance.element, size.element), h('div.tl-actions', {}, go), error),
            h('div.tl-drawn-box', {'aria-live': 'polite'}, picture, empty)));

        const number = ({control}, otherwise) => (control.value.trim() !== '' && Number.isFinite(Number(control.value)) ? Number(control.value) : otherwise);

        function advise() {
            const [bare] = bareLoras(prompt.value);
            setText(advice, bare ? `${bare.trim()} calls no LoRA without brackets: write <${bare.trim()}>.` : '');
            show(advice, Boolean(bare));
        }

        async function draw() {
            go.disabled = true;
            setText(go, 'Generating …');
            show(error, false);
            const side = number(size, undefined);
            try {
                const response = await send('POST', 'generate', {prompt: prompt.value, negative_prompt: negative.value, seed: number(seed, 1), steps: number(steps, 25),
                    guidance: number(guidance, 5), width: side, height: side});
                present(await response.blob());
            } catch (problem) {
                setText(error, problem.message);
                show(error, true);
            } finally {
                go.disabled = false;
                setText(go, 'Generate');
            }
        }

        function present(blob) {
            if (shownUrl) URL.revokeObjectURL(shownUrl);
            shownUrl = URL.createObjectURL(blob);
            picture.onload = () => picture.classList.toggle('tl-tiny', picture.naturalWidth < 200);
            picture.src = shownUrl;
            picture.alt = prompt.value;
            show(picture, true);
            show(empty, false);
        }

        function tryTag(tag, trigger) {
            const words = [trigger, tag].filter((word) => word && !prompt.value.includes(word));
            prompt.value = [prompt.value.trim(), ...words].filter(Boolean).join(' ');
            advise();
            element.scrollIntoView({behavior: 'smooth', block: 'center'});
            prompt.focus({preventScroll: true});
        }

        show(element, false);
        return {element, tryTag, setSize: (pixels) => { size.control.placeholder = String(pixels || 512); }};
    }

    return {createGenerate};
};
