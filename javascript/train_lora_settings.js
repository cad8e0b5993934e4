/* Step 2, the settings: presets, fields as the server describes them, and what was changed. */
(window.trainLora = window.trainLora || {parts: {}}).parts.settings = (kit) => {
    'use strict';
    const {h, show, setText, iconButton, card, plural, remember, remembered} = kit;

    const HIDDEN_SETTINGS = new Set(['train_data_dir', 'base_model', 'task_type', 'overwrite']);
    const WIDE_SETTINGS = new Set(['output_dir', 'logging_dir', 'metadata_path', 'init_lora']);
    const SECOND_OF = {save_state_minutes: 'save_state_steps'};                              // Two ways to say one thing stand side by side.
    const SECONDS = new Set(Object.values(SECOND_OF));
    const GROUPS = [['advanced', 'Learning'], ['pictures', 'Pictures'], ['running', 'While it trains'], ['output', 'Output']];
    const GROUP_OF = {repeats: 'pictures', enable_bucket: 'pictures', bucket_step: 'pictures', mirror: 'pictures', random_crop: 'pictures', save_steps: 'running',
        save_precision: 'output', mixed_precision: 'advanced', init_lora: 'advanced', sharing: 'running', live: 'running', save_state_minutes: 'running',
        save_state_steps: 'running', keep_states: 'running', when_memory_runs_out: 'running', gradient_checkpointing: 'running'};

    function createSettings({onChange}) {
        let schema = new Map();
        let presets = [];
        let preset = '';
        let changes = {};
        const fields = new Map();

        const identity = h('div.tl-fields.tl-identity');
        const presetBox = h('div.tl-presets', {role: 'radiogroup', 'aria-labelledby': 'tl-presets-label'});
        const main = h('div.tl-fields');
        const moreNote = h('span.tl-muted');
        const moreBody = h('div.tl-more-body');
        const more = h('details.tl-more', {}, h('summary', {}, h('span', {}, 'More settings'), moreNote), moreBody);
        const changedNote = h('span.tl-muted');
        const resetAll = iconButton('Reset to preset', 'Undo every change to the preset', () => usePreset(preset));
        const changedLine = h('span.tl-changed', {hidden: true}, changedNote, resetAll);
        const presetHead = h('div.tl-preset-head', {}, h('span.tl-label', {id: 'tl-presets-label'}, 'Preset'), changedLine);
        const element = card(2, 'Settings', identity, presetHead, presetBox, main, more);

        const presetValues = () => (presets.find(({name}) => name === preset) || {settings: {}}).settings;
        const baseline = (name) => (name in presetValues() ? presetValues()[name] : schema.get(name).default);
        const value = (name) => (name in changes ? changes[name] : baseline(name));

        function build(entries, choices) {
            const kept = remembered();
            schema = new Map(entries.map((entry) => [entry.name, {...entry}]));
            presets = choices;
            preset = presets.some(({name}) => name === kept.preset) ? kept.preset : (presets[0] || {name: ''}).name;
            changes = Object.fromEntries(Object.entries(kept.changes || {}).filter(([name]) => schema.has(name)));
            fields.clear();
            const shown = entries.filter(({name, choices: options}) => !HIDDEN_SETTINGS.has(name) && !(options && options.length < 2));
            for (const entry of shown) {
                fields.set(entry.name, createField(entry, {onInput: (text) => change(entry.name, text), onReset: () => change(entry.name, undefined)}));
            }
            const first = ['output_name', 'trigger_word'].filter((name) => fields.has(name));
            identity.replaceChildren(...first.map((name) => fields.get(name).element));
            main.replaceChildren(...shown.filter(({group, name}) => group === 'main' && !first.includes(name)).map(({name}) => fields.get(name).element));
            const rest = shown.filter(({group}) => group !== 'main');
            moreBody.replaceChildren(...GROUPS.flatMap(([group, title]) => groupOf(title, rest.filter((entry) => (GROUP_OF[entry.name] || entry.group) === group))));
            buildPresets();
            presentAll();
        }

        /** Let the model decide a default, as the resolution. */
        function setDefault(name, text) {
            if (!schema.has(name) || !text || schema.get(name).default === text) return;
            schema.get(name).default = text;
            if (String(changes[name]) === String(text)) delete changes[name];
            presentAll();
            onChange();
        }

        function groupOf(title, entries) {
            if (!entries.length) return [];
            const box = (list) => (list.length ? [h('div.tl-fields', {}, ...list.filter(({name}) => !SECONDS.has(name)).map(({name}) => withSecond(name)))] : []);
            return [h('h4.tl-group', {}, title), ...box(entries.filter(({type}) => type !== 'bool')), ...box(entries.filter(({type}) => type === 'bool'))];
        }

        const withSecond = (name) => (fields.has(SECOND_OF[name]) ? h('div.tl-pair', {}, fields.get(name).element, fields.get(SECOND_OF[name]).element) : fields.get(name).element);

        function buildPresets() {
            presetBox.replaceChildren(...presets.map(({name, title, help}) => h('label.tl-preset', {},
                h('input', {type: 'radio', name: 'tl-preset', value: name, checked: name === preset, onchange: () => usePreset(name)}),
                h('span.tl-preset-title', {}, title), h('span.tl-help', {}, help || ''))));
            for (const part of [presetHead, presetBox]) show(part, presets.length > 0);
        }

        /** Take a preset as it is: every setting that some preset decides goes back to this one's value; names and the like stay. */
        function usePreset(name) {
            preset = name;
            for (const {settings} of presets) for (const key of Object.keys(settings)) delete changes[key];
            presentAll();
            changed();
        }

        function change(name, text) {
            if (text === undefined || String(text) === String(baseline(name))) delete changes[name];
            else changes[name] = text;
            present(name);
            presentChanged();
            if (name === 'max_train_steps') presentEpochs();
            changed();
        }

        function present(name) {
            const field = fields.get(name);
            if (!field) return;
            field.setValue(value(name));
            field.setChanged(name in changes && !['output_name', 'trigger_word'].includes(name), baseline(name));
        }

        function presentAll() {
            for (const name of fields.keys()) present(name);
            presentChanged();
            presentEpochs();
        }

        function presentChanged() {
            const own = Object.keys(changes).filter((name) => fields.has(name) && !['output_name', 'trigger_word'].includes(name));
            const hidden = own.filter((name) => schema.get(name).group !== 'main');
            setText(changedNote, `${plural(own.length, 'setting')} changed`);
            show(resetAll, own.some((name) => presets.some(({settings}) => name in settings)));
            show(changedLine, own.length > 0);
            setText(moreNote, hidden.length ? `${hidden.length} changed` : '');
        }

        function presentEpochs() {
            const steps = Number(value('max_train_steps'));
            if (fields.has('epochs')) fields.get('epochs').setNote(steps > 0 ? `Not used: the run is set to ${plural(steps, 'step')}.` : '');
        }

        function changed() {
            remember({preset, changes});
            onChange();
        }

        /** What a run is told: everything shown, as typed; the server says what is wrong with it. */
        function config() {
            const values = {};
            for (const [name, {type}] of schema) {
                if (!fields.has(name) && !(name in presetValues())) continue;
                const text = value(name);
                values[name] = type === 'str' || typeof text !== 'string' || text.trim() === '' || Number.isNaN(Number(text)) ? text : Number(text);
            }
            return values;
        }

        /** Show the server's errors at their fields; a `soft` one will be asked about and stops nothing. A name not given yet is no mistake: the Train button says it. */
        function setErrors(errors) {
            for (const [name, field] of fields) {
                const error = errors.find((item) => item.field === name);
                const untouched = name === 'output_name' && !value(name);
                field.setError(error && !untouched ? error.message : '', Boolean(error && error.soft));
                if (error && !untouched && schema.get(name).group !== 'main') more.open = true;
            }
        }

        /** Take over the settings of a run; what is not shown here stays as it is. */
        function take(values) {
            for (const name of fields.keys()) {
                if (!(name in values)) continue;
                if (String(values[name]) === String(baseline(name))) delete changes[name];
                else changes[name] = values[name];
            }
            presentAll();
            changed();
        }

        return {element, build, config, setDefault, setErrors, take, schema: () => schema, value: (name) => (schema.has(name) ? value(name) : undefined),
            set: (name, text) => schema.has(name) && change(name, text)};
    }

    /** A labelled control for one entry of a schema, as the server describes settings and the options of captioners. */
    function createField(entry, {onInput, onReset, idPrefix = 'tl-setting'}) {
        const id = `${idPrefix}-${entry.name}`;
        const helpId = `${id}-help`;
        const errorId = `${id}-error`;
        const check = entry.type === 'bool';
        const described = {id, 'aria-describedby': `${helpId} ${errorId}`};
        let control;
        if (check) control = h('input.tl-check', {...described, type: 'checkbox', onchange: () => onInput(control.checked)});
        else if (entry.choices) control = h('select.tl-input', {...described, onchange: () => onInput(control.value)}, ...entry.choices.map(option));
        else control = textInput(entry, described, onInput);

        const reset = h('button.tl-reset', {type: 'button', onclick: () => { onReset(); control.focus(); }}, '↺');
        const label = h('label.tl-label', {htmlFor: id}, entry.title);
        const help = h('p.tl-help', {id: helpId}, `${entry.help || ''} `, h('span.tl-range', {}, rangeOf(entry)));
        const note = h('p.tl-help.tl-note', {hidden: true});
        const error = h('p.tl-error', {id: errorId, hidden: true, role: 'alert'});
        const unit = entry.unit ? h('span.tl-unit', {'aria-hidden': 'true'}, entry.unit) : null;
        const head = check ? h('div.tl-label-line', {}, control, label, reset) : h('div.tl-label-line', {}, label, reset);
        const element = h('div.tl-field', {}, head, check ? null : h('div.tl-control', {}, control, unit), note, help, error);
        element.classList.toggle('tl-wide', WIDE_SETTINGS.has(entry.name));
        element.classList.toggle('tl-has-unit', Boolean(unit));

        return {
            element,
            setValue(value) {
                if (check) control.checked = value === true || value === 'true';
                else if (document.activeElement !== control) control.value = String(value);   // What is being typed stays as typed.
            },
            setChanged(changed, before) {
                element.classList.toggle('tl-is-changed', changed);
                reset.title = `Back to ${before === '' ? 'empty' : before}`;
                reset.setAttribute('aria-label', `${entry.title}: ${reset.title}`);
            },
            setNote(text) {
                setText(note, text);
                show(note, Boolean(text));
                show(help, !text);
                element.classList.toggle('tl-unused', Boolean(text));
            },
            setError(text, soft = false) {
                setText(error, text);
                show(error, Boolean(text));
                error.classList.toggle('tl-asked', soft);
                control.setAttribute('aria-invalid', text && !soft ? 'true' : 'false');
            },
        };
    }

    /** A choice is a word, or {value, title, help}. */
    const option = (choice) => (typeof choice === 'object' ? h('option', {value: choice.value, title: choice.help || ''}, choice.title || choice.value)
        : h('option', {value: choice}, choice));

    function textInput(entry, described, onInput) {
        const numeric = entry.type === 'int' || entry.type === 'float';
        const input = h('input.tl-input', {...described, type: 'text', autocomplete: 'off', spellcheck: false, inputMode: numeric ? 'decimal' : 'text',
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

    return {createSettings, createField};
};
