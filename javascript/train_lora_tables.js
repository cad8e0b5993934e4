/* Tables that lie in a data set and of which something cannot be read: said at the top, and mended, replaced or thrown away there. */
(window.trainLora = window.trainLora || {parts: {}}).parts.tables = (kit) => {
    'use strict';
    const {h, show, setText, button, plural, openDialog} = kit;

    const MOST_LINES = 5;

    /** The notice. `done(text)` and `fail(error)` are told how it went. */
    function createTableNotice({done, fail}) {
        const element = h('div.tl-notices', {hidden: true});
        let drawn = '';

        function present(dataset) {
            const tables = dataset ? dataset.about().tables : [];
            show(element, tables.length > 0);
            const now = dataset ? `${dataset.name} ${JSON.stringify(tables)}` : '';
            if (now !== drawn) element.replaceChildren(...tables.map((table) => notice(table, dataset)));      // What has the focus stays while nothing changed.
            drawn = now;
        }

        function notice({filename, reason, lines}, dataset) {
            const chosen = h('input', {type: 'file', accept: '.csv,.jsonl', hidden: true, onchange: () => {
                const [file] = chosen.files;
                chosen.value = '';
                if (file) act(() => dataset.replaceTable(file, {filename}), `${filename} replaced`);
            }});
            const more = lines.length - MOST_LINES;
            return h('div.tl-notice.tl-warn.tl-table-notice', {role: 'status'},
                h('div.tl-notice-head', {}, h('strong', {}, `${filename} has to be mended before training`)),
                lines.length ? h('ul.tl-list', {}, ...lines.slice(0, MOST_LINES).map(({line, message}) => h('li', {}, `Line ${line}: ${message}`)),
                    more > 0 ? h('li', {}, `and ${plural(more, 'more line')}`) : null) : h('p', {}, reason),
                h('div.tl-actions', {}, lines.length ? button('Mend …', () => mend(filename, dataset), 'primary') : null,
                    button('Replace …', () => chosen.click()),
                    button('Move to trash', () => act(() => dataset.trashTable(filename), `${filename} moved to the trash`)), chosen));
        }

        async function act(task, text) {
            try {
                await task();
                done(text);
            } catch (error) {
                fail(error);
            }
        }

        async function mend(filename, dataset) {
            try {
                openMend(await dataset.readTable(filename), dataset, () => done(`${filename} mended`));
            } catch (error) {
                fail(error);
            }
        }

        return {element, present};
    }

    /** The table as text, with its bad lines above it; a click on one goes there. */
    function openMend({filename, text, version, lines}, dataset, done) {
        const box = h('textarea.tl-input.tl-table-text', {value: text, rows: 16, spellcheck: false, wrap: 'off', 'aria-label': filename});
        const list = h('ul.tl-list');
        const error = h('p.tl-error', {role: 'alert', hidden: true});
        const save = button('Save', () => write(), 'primary');
        const dialog = openDialog({title: `Mend ${filename}`, className: 'tl-mend', body: [list, box, error], foot: [button('Cancel', () => dialog.close()), save]});

        function goTo(line) {
            const before = box.value.split('\n').slice(0, line - 1).join('\n').length + (line > 1 ? 1 : 0);
            const end = box.value.indexOf('\n', before);
            box.focus();
            box.setSelectionRange(before, end < 0 ? box.value.length : end);
            box.scrollTop = (line - 4) * (box.scrollHeight / Math.max(1, box.value.split('\n').length));
        }

        function present(bad) {
            list.replaceChildren(...bad.map(({line, message}) => h('li', {}, h('button.tl-link', {type: 'button', onclick: () => goTo(line)}, `Line ${line}`), ` ${message}`)));
            if (bad.length) goTo(bad[0].line);
        }

        async function write() {
            save.disabled = true;
            show(error, false);
            try {
                await dataset.replaceTable(new File([box.value], filename), {filename, version});
                dialog.close();
                done();
            } catch (refusal) {
                setText(error, refusal.message);
                show(error, true);
                if (refusal.lines) present(refusal.lines);
            } finally {
                save.disabled = false;
            }
        }

        present(lines);
    }

    return {createTableNotice};
};
