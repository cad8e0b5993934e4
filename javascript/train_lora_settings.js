/* Step 2, the settings: presets, the few that matter, and all others in groups that open, can be searched, and say where they have no effect. */
(window.trainLora = window.trainLora || {parts: {}}).parts.settings = (kit) => {
    'use strict';
    const {h, show, setText, iconButton, card, plural, remember, remembered, icon, tool, openMenu, createField, toast, savePreset, importPreset, presetMenu, listPresets} = kit;

    const HIDDEN = new Set(['train_data_dir', 'base_model', 'task_type', 'overwrite']);
    const FIRST = ['output_name', 'trigger_word'];                                        // Whose values are no deviation from anything.
    const STAYS = new Set([...FIRST, ...HIDDEN, 'output_dir', 'extra_data_dirs', 'reg_data_dir', 'metadata_path']);   // What no preset is about: names, pictures, folders.
    const SECOND_OF = {save_state_minutes: 'save_state_steps', ...Object.fromEntries(['attention', 'feed_forward', 'conv', 'text_encoder'].map((part) => [`${part}_rank`, `${part}_alpha`])),
        logit_mean: 'logit_std', min_timestep: 'max_timestep', huber_c: 'huber_schedule', bucket_min: 'bucket_max', multires_noise_iterations: 'multires_noise_discount',
        noise_offset: 'noise_offset_random', input_perturbation: 'input_perturbation_random', masked_loss: 'masked_loss_floor', reg_data_dir: 'prior_loss_weight',
        validation_split: 'validate_every', save_steps: 'save_every_n_epochs'};                                              // What belongs together stands side by side.
    const SECONDS = new Set(Object.values(SECOND_OF));
    const IN_FRONT = 'main';
    const SHOW = [['all', 'All'], ['changed', 'Changed']];

    function createSettings({onChange, onImport, onExport}) {
        let schema = new Map();
        let presets = [];
        let preset = '';
        let changes = {};                                                                  // What the user has set.
        const followed = new Set();                                                        // What the model decides until the user does.
        let model = {};
        let only = 'all';
        let sections = [];
        const opened = new Set();
        const fields = new Map();

        const identity = h('div.tl-fields.tl-identity');
        const presetBox = h('div.tl-presets', {role: 'radiogroup', 'aria-labelledby': 'tl-presets-label'});
        const main = h('div.tl-fields.tl-main-settings');
        const changedNote = h('span.tl-muted');
        const resetAll = iconButton('Reset to preset', 'Everything as the preset and the defaults have it; names, pictures and folders stay', () => resetSome(resettable()));
        const changedLine = h('span.tl-changed', {hidden: true}, changedNote, resetAll);
        const saveLink = iconButton('Save as preset …', 'Keep the settings as they are now under a name of yours', () => saveAsPreset());
        saveLink.id = 'tl-save-preset';
        const presetHead = h('div.tl-preset-head', {}, h('span.tl-label', {id: 'tl-presets-label'}, 'Preset'), h('span.tl-spring'), changedLine, saveLink);

        const search = h('input.tl-input', {type: 'search', id: 'tl-settings-search', placeholder: 'Search settings', autocomplete: 'off', spellcheck: false,
            'aria-label': 'Search settings by what they are called, here or in kohya\'s scripts, and by what they do', oninput: () => presentFilter(), onkeydown: (event) => {
                if (event.key !== 'Escape' || !search.value) return;
                event.preventDefault();
                clearFilter();
            }});
        const changedCount = h('span.tl-count');
        const segments = h('div.tl-segments', {role: 'radiogroup', 'aria-label': 'Which settings are shown'}, ...SHOW.map(([value, label]) => h('label.tl-segment', {},
            h('input', {type: 'radio', name: 'tl-settings-only', value, checked: value === only, onchange: () => { only = value; presentFilter(); }}), label,
            value === 'changed' ? changedCount : null)));
        const inFront = h('div.tl-found', {hidden: true});
        const groups = h('div.tl-groups');
        const nothing = h('p.tl-no-settings', {hidden: true, role: 'status'});
        const more = h('div.tl-all-settings', {role: 'group', 'aria-labelledby': 'tl-more-settings'},
            h('div.tl-all-head', {}, h('h4.tl-all-title', {id: 'tl-more-settings'}, 'More settings'), h('div.tl-search', {}, icon('search'), search), segments), inFront, groups, nothing);

        const dots = tool('dots', 'Import and export', () => openMenu(dots, [
            {label: 'Import settings …', act: onImport}, {label: 'Export as YAML', act: onExport}, null,
            {label: 'Save as preset …', act: () => saveAsPreset()}, {label: 'Add a preset from a file …', act: () => importPreset(({name}) => loadPresets(name))}, null,
            {label: 'Everything to its default', disabled: !resettable().length && !own().length, act: () => toDefaults()}], 'Import and export'), {'aria-haspopup': 'menu', id: 'tl-settings-more'});
        const importLink = iconButton('Import settings …', 'From kohya\'s scripts, OneTrainer, lora-scripts, or any LoRA', onImport);
        importLink.id = 'tl-import-settings';
        const element = card(2, 'Settings', identity, presetHead, presetBox, main, more);
        element.querySelector('.tl-card-head').append(h('span.tl-spring'), importLink, dots);

        const presetValues = () => (presets.find(({name}) => name === preset) || {settings: {}}).settings;
        const baseline = (name) => (name in presetValues() ? presetValues()[name] : schema.get(name).default);
        const value = (name) => (name in changes ? changes[name] : baseline(name));
        const isSame = (name, text) => String(text) === String(baseline(name));
        const isChanged = (name) => name in changes && !FIRST.includes(name) && !isSame(name, changes[name]);
        const resettable = () => Object.keys(changes).filter((name) => !STAYS.has(name));
        const own = () => Object.keys(changes).filter((name) => fields.has(name) && isChanged(name));

        /** Make the fields as the server describes them: `groups` in their order, and `settings`. */
        function build(form, choices) {
            const kept = remembered();
            schema = new Map(form.settings.map((entry) => [entry.name, {...entry, names: [entry.name, ...(entry.kohya || []).map((name) => `kohya: ${name}`), ...(entry.also || [])].join(' · ')}]));
            presets = choices;
            preset = presets.some(({name}) => name === kept.preset) ? kept.preset : (presets[0] || {name: ''}).name;
            changes = Object.fromEntries(Object.entries(kept.changes || {}).filter(([name]) => schema.has(name)));
            for (const name of kept.groups || []) opened.add(name);
            fields.clear();
            const shown = [...schema.values()].filter(({name, choices: options}) => !HIDDEN.has(name) && !(options && options.length < 2));
            for (const entry of shown) {
                fields.set(entry.name, createField(entry, {onInput: (text) => change(entry.name, text), onReset: () => change(entry.name, undefined)}));
            }
            identity.replaceChildren(...FIRST.filter((name) => fields.has(name)).map((name) => fields.get(name).element));
            main.replaceChildren(...shown.filter(({group, name}) => group === IN_FRONT && !FIRST.includes(name)).map(({name}) => fields.get(name).element));
            sections = form.groups.filter(({name}) => name !== IN_FRONT).map((group) => createSection(group, shown.filter((entry) => entry.group === group.name)))
                .filter(({names}) => names.length);
            groups.replaceChildren(...sections.map((section) => section.element));
            buildPresets();
            presentAll();
        }

        /** Let the model decide a default, as the resolution. */
        function setDefault(name, text) {
            if (!schema.has(name) || !text) return;
            followed.add(name);
            if (schema.get(name).default === text) {
                present(name);
                return;
            }
            schema.get(name).default = text;
            presentAll();
            onChange();
        }

        /** What is loaded decides what `auto` means, and so what has an effect. */
        function setModel(next) {
            model = next || {};
            presentNotes();
        }

        function createSection({name: group, title}, entries) {
            const names = entries.map(({name}) => name);
            const count = h('span.tl-count', {hidden: true});
            const reset = h('button.tl-reset', {type: 'button', onclick: (event) => { event.preventDefault(); resetSome(names); }}, '↺');
            const hint = h('span.tl-group-hint', {}, entries.map((entry) => entry.title).join(', '));
            const body = h('div.tl-fields.tl-group-fields', {}, ...names.filter((name) => !SECONDS.has(name)).map(withSecond));
            let shownAs = '';                                                              // The search that it was opened for, or that it is as the user wants it.
            const details = h('details.tl-group', {'data-group': group, ontoggle: () => note()}, h('summary', {}, h('span.tl-group-title', {}, title), hint, count, reset), body);

            function note() {
                if (filtering()) return;                                                   // It was opened to show what was found.
                if (details.open === opened.has(group)) return;
                if (details.open) opened.add(group);
                else opened.delete(group);
                remember({groups: [...opened]});
            }

            function present() {
                const changed = names.filter(isChanged).length;
                setText(count, changed ? `${changed} changed` : '');
                show(count, changed > 0);
                reset.title = `Take back ${plural(changed, 'change')} in ${title}`;
                reset.setAttribute('aria-label', reset.title);
                details.classList.toggle('tl-is-changed', changed > 0);
                details.classList.toggle('tl-has-error', names.some((name) => fields.get(name).hasError()));
            }

            /** Show the fields that are wanted, and return how many those are. */
            function filter(isWanted) {
                const wanted = names.filter(isWanted);
                for (const name of names) show(fields.get(name).element, wanted.includes(name));
                show(details, wanted.length > 0);
                const view = filtering() ? `${only} ${search.value}` : 'all';
                if (view !== shownAs) details.open = filtering() || opened.has(group);
                shownAs = view;
                return wanted.length;
            }

            const open = () => {
                opened.add(group);
                details.open = true;
            };
            return {element: details, names, present, filter, open};
        }

        const withSecond = (name) => (fields.has(SECOND_OF[name]) ? h('div.tl-pair', {}, fields.get(name).element, fields.get(SECOND_OF[name]).element) : fields.get(name).element);

        function buildPresets() {
            presetBox.replaceChildren(...presets.map((each) => {
                const {name, title, help, own: isOwn, problem} = each;
                const choice = h('label.tl-preset', {title: problem || ''},
                    h('input', {type: 'radio', name: 'tl-preset', value: name, checked: name === preset, disabled: Boolean(problem), onchange: () => usePreset(name)}),
                    h('span.tl-preset-title', {}, title), h('span.tl-help', {}, problem ? 'Cannot be read.' : help || ''));
                if (!isOwn) return choice;
                choice.classList.add('tl-own');
                return h('div.tl-own-preset', {}, choice, presetMenu(each, {onChanged: (what) => presetChanged(what)}));
            }));
            for (const part of [presetHead, presetBox]) show(part, presets.length > 0);
        }

        /** Ask the server for the presets, and with a name take that one up. */
        async function loadPresets(name = '') {
            try {
                presets = await listPresets();
            } catch (error) {
                toast(error.message);
                return;
            }
            const isThere = presets.some((each) => each.name === name);
            if (isThere) preset = name;
            buildPresets();
            if (isThere) usePreset(name);
        }

        /** What is set now is the preset from then on: nothing differs from it. */
        function saveAsPreset() {
            const settings = Object.fromEntries(Object.entries({...presetValues(), ...changes}).filter(([name]) => !STAYS.has(name)));
            savePreset({settings, own: presets.filter((each) => each.own).map((each) => each.name), shown: presets.find(({name}) => name === preset),
                onSaved: ({name, title}) => { loadPresets(name); toast(`Saved as ${title}.`); }});
        }

        /** One that was renamed stays in use; where the one in use was deleted, its settings stay as they are, as changes. */
        function presetChanged({renamed, to, deleted}) {
            if (renamed === preset) preset = to;
            if (deleted && deleted === preset) {
                changes = {...presetValues(), ...changes};
                preset = (presets[0] || {name: ''}).name;
                presets = presets.filter(({name}) => name !== deleted);
                presentAll();
            }
            changed();
            loadPresets();
        }

        /** Take a preset as it is: every setting that some preset decides goes back to this one's value; names and the like stay. */
        function usePreset(name) {
            preset = name;
            for (const {settings} of presets) for (const key of Object.keys(settings)) delete changes[key];
            presentAll();
            changed();
        }

        function change(name, text) {
            put(name, text);
            present(name);
            presentChanged();
            presentNotes();
            changed();
        }

        /** Note what the user has set, or with undefined that nothing is; a value that the model decides counts as set even where the model says the same. */
        function put(name, text) {
            if (text === undefined || (isSame(name, text) && !followed.has(name))) delete changes[name];
            else changes[name] = text;
        }

        function resetSome(names) {
            for (const name of names) delete changes[name];
            presentAll();
            changed();
        }

        function toDefaults() {
            take({}, {rest: true});
        }

        function present(name) {
            const field = fields.get(name);
            if (!field) return;
            field.setValue(value(name));
            field.setChanged(isChanged(name), baseline(name), followed.has(name) && name in changes);
        }

        function presentAll() {
            for (const name of fields.keys()) present(name);
            presentNotes();
            presentFilter();
        }

        function presentChanged() {
            const count = own().length;
            setText(changedNote, `${plural(count, 'setting')} changed`);
            show(resetAll, own().some((name) => !STAYS.has(name)));
            show(changedLine, count > 0);
            setText(changedCount, count ? ` ${count}` : '');
            for (const section of sections) section.present();
        }


        // --- What has an effect ---------------------------------------------------------------------------------------

        /** A setting's value as the run will take it: `auto` is what the model says; undefined where that is not known. */
        function effective(name) {
            const set = value(name);
            if (set === 'auto' && name === 'prediction_type') return model.prediction_type || undefined;
            return set;
        }

        const isOn = (set) => !(set === false || ['', 'off', 'false'].includes(String(set).trim()) || Number(set) === 0);

        function holds(name, wanted) {
            const set = effective(name);
            if (set === undefined) return true;
            return Array.isArray(wanted) ? wanted.includes(String(set)) : isOn(set) === wanted;
        }

        const unmet = (condition) => Object.entries(condition).filter(([name, wanted]) => schema.has(name) && !holds(name, wanted));

        /** Why a setting has no effect, as words and links to the settings that decide; nothing when it has. */
        function whyIdle({effective_when: conditions = []}) {
            const missing = conditions.map(unmet);
            if (!missing.length || missing.some((parts) => !parts.length)) return [];
            const [decided] = missing[0].filter(([, wanted]) => wanted === false);
            if (decided) return ['Not used: ', linkTo(decided[0]), ' decides.'];
            const words = missing.map((parts) => joined(parts.map(([name, wanted]) => [linkTo(name), Array.isArray(wanted) ? `: ${wanted.join(' or ')}` : '']), ' and '));
            return ['Only with ', ...joined(words, ' or '), '.'];
        }

        const joined = (lists, word) => lists.flatMap((list, index) => (index ? [word, ...list] : list));
        const linkTo = (name) => h('button.tl-link', {type: 'button', onclick: () => reveal(name)}, schema.get(name).title);

        function presentNotes() {
            for (const [name, field] of fields) field.setNote(whyIdle(schema.get(name)));
        }


        // --- Search ---------------------------------------------------------------------------------------------------

        const filtering = () => only !== 'all' || search.value.trim() !== '';

        function matches(entry, words) {
            const choices = (entry.choices || []).map((choice) => choice.value || choice);
            const text = [entry.title, entry.help, entry.name, entry.name.replaceAll('_', ' '), ...(entry.kohya || []), ...(entry.also || []), ...choices].join(' ').toLowerCase();
            return words.every((word) => text.includes(word));
        }

        function presentFilter() {
            const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
            const isWanted = (name) => fields.get(name).hasError() || (matches(schema.get(name), words) && (only === 'all' || isChanged(name)));
            const count = sections.map((section) => section.filter(isWanted)).reduce((sum, each) => sum + each, 0);
            const front = filtering() ? [...fields.keys()].filter((name) => schema.get(name).group === IN_FRONT && isWanted(name)) : [];
            inFront.replaceChildren('Above: ', ...joined(front.map((name) => [linkTo(name)]), ', '));
            show(inFront, front.length > 0);
            setText(nothing, only === 'changed' && !words.length ? 'Nothing differs from the preset and the defaults.' : `No ${only === 'changed' ? 'changed ' : ''}setting matches “${search.value.trim()}”.`);
            show(nothing, filtering() && !count && !front.length);
            more.classList.toggle('tl-searching', words.length > 0);
            presentChanged();
        }

        function clearFilter() {
            search.value = '';
            only = 'all';
            for (const input of segments.querySelectorAll('input')) input.checked = input.value === only;
            presentFilter();
        }

        /** Lead to a setting, wherever it is. */
        function reveal(name) {
            const field = fields.get(name);
            const section = sections.find(({names}) => names.includes(name));
            if (section && (field.element.hidden || section.element.hidden)) clearFilter();
            if (section) section.open();
            field.focus();
            field.element.classList.remove('tl-pointed');
            requestAnimationFrame(() => field.element.classList.add('tl-pointed'));
        }


        // --- To and from others ---------------------------------------------------------------------------------------

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
                const fresh = error && !untouched && !field.hasError();
                field.setError(error && !untouched ? error.message : '', Boolean(error && error.soft), error && !untouched ? remediesOf(error.remedies || []) : null);
                const section = fresh && sections.find(({names}) => names.includes(name));
                if (section) section.open();
            }
            presentFilter();
        }

        /** Make the buttons that set something right, each by changing settings that are on the page; null where there are none. */
        function remediesOf(remedies) {
            const possible = remedies.filter(({changes: wanted}) => Object.keys(wanted).every((name) => fields.has(name)));
            if (!possible.length) return null;
            return h('span.tl-remedies', {}, ...possible.map(({label, changes: wanted}) => h('button.tl-button', {type: 'button', onclick: () => {
                for (const [name, text] of Object.entries(wanted)) put(name, text);
                presentAll();
                changed();
            }}, label)));
        }

        /** Take over settings, as those of a run; what they do not say stays as it is, or with `rest` becomes the default, but for the names. */
        function take(values, {rest = false} = {}) {
            for (const name of fields.keys()) {
                if (!(name in values) && !(rest && !FIRST.includes(name))) continue;
                const isDecided = !(name in values) && followed.has(name);
                put(name, name in values ? values[name] : isDecided ? undefined : schema.get(name).default);
            }
            presentAll();
            changed();
        }

        return {element, build, config, setDefault, setModel, setErrors, take, reveal, remedies: remediesOf, schema: () => schema, shows: (name) => fields.has(name),
            value: (name) => (schema.has(name) ? value(name) : undefined), set: (name, text) => schema.has(name) && change(name, text)};
    }

    return {createSettings};
};
