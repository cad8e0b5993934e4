/* A labelled control for one entry of a schema, as the server describes settings and the options of captioners. */
(window.trainLora = window.trainLora || {parts: {}}).parts.fields = (kit) => {
    'use strict';
    const {h, show, setText} = kit;

    const WIDE = new Set(['output_dir', 'logging_dir', 'metadata_path', 'init_lora', 'reg_data_dir', 'lora_blocks', 'block_learning_rates', 'optimizer_args']);
    const THEIRS = /_(generate|interrupt|skip)$/;                                         // The WebUI takes what has such an id for a button of its own.
    const LINES = {extra_data_dirs: 3};                                                    // How high a text of several lines is.

    /** `onInput` hears the value as typed, `onReset` that it is to be what it was. */
    function createField(entry, {onInput, onReset, idPrefix = 'tl-setting'}) {
        const id = `${idPrefix}-${entry.name}${THEIRS.test(entry.name) ? '-' : ''}`;
        const helpId = `${id}-help`;
        const errorId = `${id}-error`;
        const check = entry.type === 'bool';
        const described = {id, 'aria-describedby': `${helpId} ${id}-note ${errorId}`};
        let control;
        let typing = false;
        if (check) control = h('input.tl-check', {...described, type: 'checkbox', onchange: () => onInput(control.checked)});
        else if (entry.choices) control = h('select.tl-input', {...described, onchange: () => onInput(control.value)}, ...entry.choices.map(option));
        else control = textInput(entry, described, (text) => { typing = true; onInput(text); });
        control.addEventListener('blur', () => { typing = false; });

        const reset = h('button.tl-reset', {type: 'button', onclick: () => { onReset(); control.focus(); }}, '↺');
        const label = h('label.tl-label', {htmlFor: id, title: entry.names || ''}, entry.title);
        const help = h('p.tl-help', {id: helpId}, `${entry.help || ''} `, h('span.tl-range', {}, rangeOf(entry)));
        const note = h('p.tl-help.tl-note', {id: `${id}-note`, hidden: true});
        const needs = h('p.tl-help.tl-needs', {hidden: true});
        const error = h('p.tl-error', {id: errorId, hidden: true, role: 'alert'});
        const remedy = h('div.tl-remedy-place');
        const unit = entry.unit ? h('span.tl-unit', {'aria-hidden': 'true'}, entry.unit) : null;
        const head = check ? h('div.tl-label-line', {}, control, label, reset) : h('div.tl-label-line', {}, label, reset);
        const names = entry.names ? h('p.tl-names', {'aria-hidden': 'true'}, entry.names) : null;
        const element = h('div.tl-field', {}, head, check ? null : h('div.tl-control', {}, control, unit), note, needs, help, names, error, remedy);
        element.classList.toggle('tl-wide', WIDE.has(entry.name));
        element.classList.toggle('tl-full', entry.name in LINES);
        element.classList.toggle('tl-has-unit', Boolean(unit));
        element.style.setProperty('--tl-unit-width', `${(entry.unit || '').length + 2}ch`);

        return {
            element,
            setValue(value) {
                if (check) control.checked = value === true || value === 'true';
                else if (!typing) control.value = String(value);   // What is being typed stays as typed.
                presentNeeds(value);
            },
            /** `kept`: it is set by the user, though it may be the same as what it would be `before`. */
            setChanged(changed, before, kept = false) {
                element.classList.toggle('tl-is-changed', changed);
                element.classList.toggle('tl-is-kept', kept);
                reset.title = kept && !changed ? 'Follow the checkpoint again' : `Back to ${before === '' ? 'empty' : before === true ? 'on' : before === false ? 'off' : before}`;
                reset.setAttribute('aria-label', `${entry.title}: ${reset.title}`);
            },
            /** Say, in words and links, why it has no effect; nothing: it has. */
            setNote(parts) {
                const text = parts.map((part) => part.textContent ?? part).join('');
                if (note.textContent !== text) note.replaceChildren(...parts);
                show(note, Boolean(text));
                show(help, !text);
                element.classList.toggle('tl-unused', Boolean(text));
            },
            /** `remedies`: what sets it right, or nothing. */
            setError(text, soft = false, remedies = null) {
                setText(error, text);
                if (remedy.textContent !== (remedies ? remedies.textContent : '')) remedy.replaceChildren(...(remedies ? [remedies] : []));
                show(error, Boolean(text));
                error.classList.toggle('tl-asked', soft);
                control.setAttribute('aria-invalid', text && !soft ? 'true' : 'false');
            },
            hasError: () => !error.hidden,
            focus() {
                element.scrollIntoView({block: 'center'});
                control.focus({preventScroll: true});
            },
        };

        /** A choice that lacks a package says what to install. */
        function presentNeeds(value) {
            const chosen = (entry.choices || []).find((choice) => choice.value === value);
            show(needs, Boolean(chosen && chosen.needs));
            if (chosen && chosen.needs) needs.replaceChildren('Not installed. To have it, and then start again: ', h('code.tl-command', {}, chosen.needs));
        }
    }

    /** A choice is a word, or {value, title, help, needs}: `needs` is the command that installs what it lacks. */
    const option = (choice) => (typeof choice === 'object' ? h('option', {value: choice.value, title: choice.needs || choice.help || ''},
        `${choice.title || choice.value}${choice.needs ? ' (not installed)' : ''}`) : h('option', {value: choice}, choice));

    function textInput(entry, described, onInput) {
        const numeric = entry.type === 'int' || entry.type === 'float';
        const rows = LINES[entry.name];
        const input = rows ? h('textarea.tl-input', {...described, rows, spellcheck: false, oninput: () => onInput(input.value.trim())})
            : h('input.tl-input', {...described, type: 'text', autocomplete: 'off', spellcheck: false, inputMode: numeric ? 'decimal' : 'text',
                oninput: () => onInput(input.value.trim())});
        if (entry.type === 'int') input.addEventListener('keydown', (event) => {
            const direction = {ArrowUp: 1, ArrowDown: -1}[event.key];
            const number = Number(input.value);
            if (!direction || input.value.trim() === '' || !Number.isInteger(number)) return;
            event.preventDefault();
            const wide = entry.name === 'resolution' ? 64 : 1;
            input.value = String(Math.min(entry.maximum ?? Infinity, Math.max(entry.minimum ?? -Infinity, number + direction * wide)));
            onInput(input.value);
        });
        return input;
    }

    function rangeOf({minimum, maximum, type}) {
        if (minimum === null || minimum === undefined || type === 'bool') return '';
        const words = (number) => (Math.abs(number) >= 1e4 ? number.toLocaleString('en') : String(number));
        return `(${words(minimum)} to ${words(maximum)})`;
    }

    return {createField};
};
