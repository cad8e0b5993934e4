/* Captions from a table (metadata.csv, metadata.jsonl): what would be overwritten is shown first. */
(window.trainLora = window.trainLora || {parts: {}}).parts.importing = (kit) => {
    'use strict';
    const {h, show, setText, button, plural, openDialog, changeRow} = kit;

    const MOST_ROWS = 300;
    const ENCODINGS = {'utf-8': 'UTF-8', 'utf-8-sig': 'UTF-8 with BOM', 'utf-16': 'UTF-16', gb18030: 'Chinese (GBK)', big5: 'Chinese (Big5)', cp932: 'Japanese (Shift-JIS)', euc_kr: 'Korean',
        cp1252: 'Western', 'latin-1': 'Western (Latin-1)'};

    /** Read a table into a data set. `fresh`: the data set was just made, so that nothing needs asking unless something would be lost. */
    async function importTable(file, {dataset, fresh = false, done}) {
        const first = await dataset.previewImport(file);
        const harmless = first.changes.every(({before}) => !before) && !first.problems.length;
        if (fresh && harmless) return done(await dataset.applyImport(file, first.encoding, versionsOf(first)), first);
        return openImport(file, first, {dataset, done});
    }

    const versionsOf = ({changes}) => Object.fromEntries(changes.map(({filename, version}) => [filename, version]));

    function openImport(file, first, {dataset, done}) {
        let found = first;
        const summary = h('p.tl-bulk-count', {'aria-live': 'polite'});
        const error = h('p.tl-error', {role: 'alert', hidden: true});
        const encodings = h('select.tl-input', {id: 'tl-encoding', onchange: () => again()});
        const problems = h('ul.tl-list');
        const problemTitle = h('strong');
        const problemBox = h('div.tl-notice.tl-warn', {hidden: true}, h('div.tl-notice-head', {}, problemTitle), problems);
        const rows = h('ul.tl-changes');
        const go = button('Write', () => apply(), 'primary');
        const dialog = openDialog({title: `Captions from ${file.name}`, className: 'tl-import',
            body: [h('div.tl-import-head', {}, summary, h('div.tl-field.tl-encoding', {}, h('label.tl-label', {htmlFor: 'tl-encoding'}, 'Encoding'), encodings)),
                error, problemBox, rows],
            foot: [button('Cancel', () => dialog.close()), go]});

        function present() {
            const {changes, unchanged} = found;
            const over = changes.filter(({before}) => before).length;
            const parts = [`${plural(changes.length, 'caption')} will be written`, over ? `${over} of them over another` : '',
                unchanged ? `${unchanged} ${unchanged === 1 ? 'is' : 'are'} the same already` : ''];
            setText(summary, changes.length ? `${parts.filter(Boolean).join(', ')}.` : 'Nothing would change.');
            const choices = [...new Set([found.encoding, ...(found.encodings || [])])];
            encodings.replaceChildren(...choices.map((value) => h('option', {value}, ENCODINGS[value] || value)));
            encodings.value = found.encoding;
            setText(problemTitle, `${plural(found.problems.length, 'line')} left out`);
            problems.replaceChildren(...found.problems.map(({line, message}) => h('li', {}, h('strong', {}, `Line ${line}: `), message)));
            show(problemBox, found.problems.length > 0);
            const first = [...changes].sort((a, b) => Boolean(b.before) - Boolean(a.before));      // What would be lost is seen first.
            rows.replaceChildren(...first.slice(0, MOST_ROWS).map((row) => changeRow(dataset, row)),
                ...(changes.length > MOST_ROWS ? [h('li.tl-muted', {}, `… and ${changes.length - MOST_ROWS} more`)] : []));
            go.disabled = !changes.length;
            setText(go, changes.length ? `Write ${plural(changes.length, 'caption')}` : 'Write nothing');
        }

        function fail(problem) {
            setText(error, problem.message);
            show(error, true);
        }

        async function again() {
            show(error, false);
            try {
                found = await dataset.previewImport(file, encodings.value);
                present();
            } catch (problem) {
                fail(problem);
                go.disabled = true;
            }
        }

        async function apply() {
            go.disabled = true;
            try {
                const edited = await dataset.applyImport(file, encodings.value, versionsOf(found));
                dialog.close();
                done(edited, found);
            } catch (problem) {
                if (problem.code === 'changed_meanwhile') await again();
                fail(problem.code === 'changed_meanwhile' ? {message: 'Captions were changed elsewhere meanwhile. Look at the changes again.'} : problem);
            }
        }

        present();
    }

    return {importTable};
};
