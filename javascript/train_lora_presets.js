/* The user's own presets: save the settings as one, rename, replace, delete, and share as files. */
(window.trainLora = window.trainLora || {parts: {}}).parts.presets = (kit) => {
    'use strict';
    const {h, show, setText, button, get, send, upload, openDialog, ask, toast, tool, openMenu} = kit;

    const path = (name, end = '') => `presets/${encodeURIComponent(name)}${end}`;

    /** Ask for a name, and let `act(name, replace)` use it; a name that is taken is asked about where one may replace it. */
    function askName({title, label, name = '', help = null, go, act, mayReplace = () => false}) {
        const input = h('input.tl-input', {id: 'tl-preset-name', type: 'text', value: name, maxLength: 80, autocomplete: 'off', spellcheck: false, oninput: () => show(error, false)});
        const error = h('p.tl-error', {role: 'alert', hidden: true});
        const field = h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-preset-name'}, label), input, error);
        const save = button(go, () => done(false), 'primary');
        const dialog = openDialog({title, className: 'tl-ask', body: [field, help].filter(Boolean), keys: (event) => {
            if (event.key !== 'Enter' || event.isComposing || event.target !== input) return;
            event.preventDefault();
            done(false);
        }, foot: [h('span.tl-spring'), button('Cancel', () => dialog.close()), save]});
        input.focus();
        input.select();

        async function done(replace) {
            const wanted = input.value.trim();
            save.disabled = true;
            try {
                await act(wanted, replace);
                dialog.close();
            } catch (problem) {
                if (problem.code === 'name_taken' && mayReplace(wanted)) return replaceAfterAsking(wanted);
                setText(error, wanted ? problem.message : 'Give it a name.');
                show(error, true);
                input.focus();
            } finally {
                save.disabled = false;
            }
        }

        async function replaceAfterAsking(wanted) {
            const answer = await ask({title: `Replace ${wanted}?`, text: `Your preset ${wanted} becomes what is set now.`, answers: [{label: 'Replace', kind: 'primary', value: true}]});
            if (answer) done(true);
        }
    }

    /** Save `settings` as a preset; `own` are the names of those that may be replaced, `shown` the one in use. */
    function savePreset({settings, own, shown, onSaved}) {
        const purpose = h('input.tl-input', {id: 'tl-preset-help', type: 'text', maxLength: 200, autocomplete: 'off', value: shown && shown.own ? shown.help : ''});
        askName({title: 'Save as preset', label: 'Name', name: shown && shown.own ? shown.name : '', go: 'Save preset', mayReplace: (name) => own.includes(name),
            help: h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-preset-help'}, 'What it is for'), purpose,
                h('p.tl-help', {}, 'Holds the settings, not your pictures, folders, names or trigger word.')),
            act: async (name, overwrite) => onSaved(await (await send('PUT', path(name), {settings, help: purpose.value.trim(), overwrite})).json())});
    }

    function renamePreset(preset, onRenamed) {
        askName({title: 'Rename preset', label: 'Name', name: preset.name, go: 'Rename',
            act: async (to) => onRenamed(await (await send('POST', path(preset.name, '/rename'), {to})).json())});
    }

    async function deletePreset(preset, onDeleted) {
        const answer = await ask({title: `Delete ${preset.title}?`, text: 'The settings as they are now stay.', answers: [{label: 'Delete', kind: 'danger', value: true}]});
        if (!answer) return;
        try {
            onDeleted(await (await send('DELETE', path(preset.name))).json());
        } catch (error) {
            toast(error.message);
        }
    }

    async function exportPreset(preset) {
        try {
            const response = await send('GET', path(preset.name, '/export'));
            const link = h('a', {href: URL.createObjectURL(await response.blob()), download: `${preset.title}.yaml`});
            link.click();
            setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
        } catch (error) {
            toast(error.message);
        }
    }

    /** Let a file be chosen, and take the preset in it over. */
    function importPreset(onTaken) {
        const chooser = h('input', {type: 'file', accept: '.yaml,.yml', hidden: true, onchange: async () => {
            const [file] = chooser.files;
            if (!file) return;
            try {
                const taken = await upload('presets/import', [{file, name: file.name, field: 'file'}]);
                onTaken(taken);
                toast(taken.left_out.length ? `${taken.title} added, without ${taken.left_out.map(({key}) => key).join(', ')}.` : `${taken.title} added.`);
            } catch (error) {
                toast(error.message);
            }
        }});
        chooser.click();
    }

    /** The button on a preset of one's own. */
    function presetMenu(preset, {onChanged}) {
        const dots = tool('dots', `Rename, share or delete ${preset.title}`, (event) => {
            event.preventDefault();
            openMenu(dots, [
                {label: 'Rename …', disabled: Boolean(preset.problem), act: () => renamePreset(preset, (now) => onChanged({renamed: preset.name, to: now.name}))},
                {label: 'Save as a file', disabled: Boolean(preset.problem), act: () => exportPreset(preset)}, null,
                {label: 'Delete', danger: true, act: () => deletePreset(preset, () => onChanged({deleted: preset.name}))}], 'Preset');
        }, {'aria-haspopup': 'menu'});
        return dots;
    }

    const listPresets = () => get('presets');

    return {savePreset, importPreset, exportPreset, presetMenu, listPresets};
};
