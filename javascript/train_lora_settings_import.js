/* Settings from elsewhere: another trainer's file, a LoRA ("train like this one"). What is taken over and what is not is shown before anything changes. */
(window.trainLora = window.trainLora || {parts: {}}).parts.settings_import = (kit) => {
    'use strict';
    const {h, show, setText, button, plural, get, send, upload, openDialog, toast} = kit;

    const ENDINGS = ['.toml', '.json', '.yaml', '.yml', '.safetensors'];
    const LARGEST_SETTINGS_BYTES = 1_000_000;
    const LARGEST_HEADER_BYTES = 10_000_000;
    const MOST_LORAS = 500;
    const MOST_OPEN = 6;                                                                   // More of what is left out is opened by hand.

    /** What of a file need be sent: all of a settings file; of a LoRA, however large, its header, whose length the first 8 bytes tell. */
    async function partOf(file) {
        const name = file.name.toLowerCase();
        if (!ENDINGS.some((ending) => name.endsWith(ending))) throw new Error(`${file.name} is no settings file: ${ENDINGS.join(', ')} can be read.`);
        if (!name.endsWith('.safetensors')) {
            if (file.size > LARGEST_SETTINGS_BYTES) throw new Error(`${file.name} is too large for a settings file.`);
            return file;
        }
        const start = await file.slice(0, 8).arrayBuffer();
        const length = start.byteLength === 8 ? new DataView(start).getBigUint64(0, true) : -1n;
        if (length < 0n || length > BigInt(LARGEST_HEADER_BYTES) || 8 + Number(length) > file.size) throw new Error(`${file.name} is damaged, or no .safetensors file.`);
        return file.slice(0, 8 + Number(length));
    }

    const wordsOf = (value) => (value === true ? 'on' : value === false ? 'off' : value === '' || value === null || value === undefined ? '–'
        : typeof value === 'object' ? JSON.stringify(value) : String(value));

    /** Choose a file or a LoRA, look at what would change, and take it over. */
    function openSettingsImport({settings}) {
        let found = null;
        let asked = 0;
        const chooser = h('input', {type: 'file', accept: ENDINGS.join(','), hidden: true, tabIndex: -1, 'aria-label': 'Settings file', onchange: () => readFile(chooser.files[0])});
        const drop = h('div.tl-drop.tl-settings-drop', {}, h('strong', {}, 'Drop a settings file or a LoRA here'), h('p.tl-help', {}, 'kohya\'s TOML or JSON, OneTrainer\'s JSON, lora-scripts\' YAML or TOML, any LoRA as .safetensors. ',
            'Of a LoRA only its header is read.'), button('Choose a file …', () => chooser.click()), chooser);
        const loras = h('select.tl-input', {id: 'tl-like', onchange: () => loras.value && readLora(loras.value)});
        const likeBox = h('div.tl-field', {hidden: true}, h('label.tl-label', {htmlFor: 'tl-like'}, 'Train like this one'), loras,
            h('p.tl-help', {}, 'A LoRA of your LoRA folder, ours or kohya\'s: with the settings that it was trained with.'));
        const sources = h('div.tl-import-sources', {}, drop, likeBox);
        const error = h('p.tl-error', {role: 'alert', hidden: true});
        const summary = h('p.tl-bulk-count', {'aria-live': 'polite'});
        const rest = h('input.tl-check', {type: 'checkbox', id: 'tl-import-rest', checked: true, onchange: () => present()});
        const restLine = h('label.tl-check-line', {}, rest, h('span', {}, 'Everything that it does not say becomes the default'));
        const rows = h('tbody');
        const table = h('table.tl-import-table', {}, h('thead', {}, h('tr', {}, ...['Setting', 'Now', 'Becomes'].map((title) => h('th', {scope: 'col'}, title)))), rows);
        const leftRows = h('ul.tl-left-out');
        const leftBox = h('details.tl-left-box', {}, h('summary', {}, h('span.tl-left-title')), leftRows);
        const result = h('div.tl-import-result', {hidden: true}, summary, leftBox, restLine, table);
        const again = button('Another file', () => { found = null; present(); });
        const go = button('Take over', () => apply(), 'primary');
        const dialog = openDialog({title: 'Import settings', className: 'tl-settings-import', body: [error, sources, result],
            foot: [again, h('span.tl-spring'), button('Cancel', () => dialog.close()), go]});

        for (const kind of ['dragenter', 'dragover']) {
            dialog.element.addEventListener(kind, (event) => {
                event.preventDefault();
                event.stopPropagation();
                drop.classList.add('tl-over');
            });
        }
        dialog.element.addEventListener('dragleave', (event) => { if (!dialog.element.contains(event.relatedTarget)) drop.classList.remove('tl-over'); });
        dialog.element.addEventListener('drop', (event) => {
            event.preventDefault();
            event.stopPropagation();
            drop.classList.remove('tl-over');
            if (event.dataTransfer.files.length) readFile(event.dataTransfer.files[0]);
        });

        async function read(ask) {
            const number = asked += 1;
            show(error, false);
            go.disabled = true;
            drop.classList.add('tl-working');
            try {
                const answer = await ask();
                if (number !== asked) return;
                found = answer;
                present();
                (go.disabled ? again : go).focus({preventScroll: true});
                return;
            } catch (problem) {
                if (number !== asked) return;
                found = null;
                setText(error, problem.message);
                show(error, true);
            } finally {
                if (number === asked) drop.classList.remove('tl-working');
            }
            present();
        }

        const readFile = (file) => file && read(async () => {
            chooser.value = '';
            return upload('settings/import', [{file: await partOf(file), name: file.name, field: 'file'}]);
        });
        const readLora = (name) => read(() => upload('settings/import', [], () => {}, {lora: name}));

        /** What would change: {name, now, next, how}, what differs first and what only goes back to its default last; and what the file says that is left out. */
        function sorted() {
            const named = Boolean(settings.value('output_name'));
            const shown = Object.entries(found.settings).filter(([name]) => settings.shows(name) && !(name === 'output_name' && named));
            const others = Object.entries(found.settings).filter(([name, value]) => !shown.some(([other]) => other === name) && value !== '')
                .map(([name, value]) => ({key: name, value, reason: reasonFor(name)}));
            const lines = shown.map(([name, value]) => ({name, now: settings.value(name), next: value, how: (found.assumed || []).includes(name) ? 'its program\'s default' : ''}));
            const defaults = [...settings.schema().values()].filter(({name}) => rest.checked && settings.shows(name) && !['output_name', 'trigger_word'].includes(name)
                && !shown.some(([other]) => other === name)).map((entry) => ({name: entry.name, now: settings.value(entry.name), next: entry.default, how: 'the default'})).filter(differs);
            return {lines: [...lines.filter(differs), ...defaults, ...lines.filter((line) => !differs(line))], left: [...found.left_out, ...others],
                shown: Object.fromEntries(shown), different: lines.filter(differs).length};
        }

        const differs = ({now, next}) => String(now) !== String(next);

        const reasonFor = (name) => ({train_data_dir: 'the pictures are chosen in step 1', base_model: 'the loaded checkpoint is trained', output_name: 'you have given a name already'}[name]
            || 'it is not set on this page');

        function present() {
            show(sources, !found);
            show(result, Boolean(found));
            show(again, Boolean(found));
            show(go, Boolean(found));
            setText(dialog.heading, found ? `Settings from ${found.filename}` : 'Import settings');
            if (!found) return;
            const {lines, left, shown, different} = sorted();
            const count = Object.keys(shown).length;
            const kind = found.source ? `${found.source.charAt(0).toUpperCase()}${found.source.slice(1)}: ` : '';
            setText(summary, `${kind}${count ? `${plural(count, 'setting')}, ${different ? `${different} of them different from yours` : 'all as they are already'}` : 'nothing that can be set here'}.`);
            rows.replaceChildren(...lines.map((line) => {
                const entry = settings.schema().get(line.name);
                const words = (value) => [wordsOf(value), entry.unit && wordsOf(value) !== '–' ? entry.unit : ''].filter(Boolean).join(' ');
                return h(`tr${differs(line) ? '' : '.tl-same'}`, {}, h('th', {scope: 'row', title: entry.names || ''}, entry.title), h('td.tl-was', {}, words(line.now)),
                    h('td.tl-next', {}, words(line.next), line.how ? h('span.tl-how', {}, line.how) : ''));
            }));
            show(table, lines.length > 0);
            setText(leftBox.querySelector('.tl-left-title'), `${plural(left.length, 'entry', 'entries')} left out`);
            leftRows.replaceChildren(...left.map(({key, value, reason}) => h('li', {}, h('code', {}, key), h('span.tl-left-value', {title: wordsOf(value)}, wordsOf(value)),
                h('span.tl-left-reason', {}, reason))));
            show(leftBox, left.length > 0);
            if (leftBox.dataset.of !== found.filename) leftBox.open = left.length > 0 && left.length <= MOST_OPEN;
            leftBox.dataset.of = found.filename;
            go.disabled = !count;
            setText(go, count ? `Take over ${plural(count, 'setting')}` : 'Nothing to take over');
        }

        function apply() {
            const {shown} = sorted();
            settings.take(shown, {rest: rest.checked});
            dialog.close();
            toast(`${plural(Object.keys(shown).length, 'setting')} taken over from ${found.filename}.`);
        }

        get('loras').then((found) => {
            loras.replaceChildren(h('option', {value: ''}, 'Choose a LoRA …'), ...found.slice(0, MOST_LORAS).map(({name}) => h('option', {value: name}, name)));
            show(likeBox, found.length > 0);
        }).catch(() => {});
        present();
        drop.querySelector('button').focus();
        return {readFile, readLora};
    }

    /** Save the settings as a YAML file that the command line and the import read. */
    async function exportSettings(config) {
        try {
            const response = await send('POST', 'settings/export', {config});
            const link = h('a', {href: URL.createObjectURL(await response.blob()), download: `${config.output_name || 'settings'}.yaml`});
            link.click();
            setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
        } catch (error) {
            toast(error.message);
        }
    }

    return {openSettingsImport, exportSettings};
};
