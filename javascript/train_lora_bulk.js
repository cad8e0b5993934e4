/* Edits of many captions at once, each shown before it is done and each one step of the history. */
(window.trainLora = window.trainLora || {parts: {}}).parts.bulk = (kit) => {
    'use strict';
    const {h, show, setText, button, plural, openDialog, change} = kit;

    const PREVIEW_MS = 250;
    const MOST_ROWS = 200;
    const MOST_TAGS = 500;

    const field = (name, title, more = {}) => ({name, title, type: 'text', ...more});
    const check = (name, title) => ({name, title, type: 'bool'});
    const ACTIONS = [
        {action: 'trigger_first', title: 'Trigger word first', help: 'Puts the trigger word in front; where it stands elsewhere in the caption, it is moved.',
            fields: [field('text', 'Trigger word', {from: 'trigger_word'})]},
        {action: 'prepend', title: 'Add in front', help: 'Adds words before what is there.', fields: [field('text', 'Words to add')]},
        {action: 'append', title: 'Add at the end', help: 'Adds words after what is there.', fields: [field('text', 'Words to add')]},
        {action: 'replace', title: 'Replace', help: 'Finds text anywhere in the captions and puts other text there.',
            fields: [field('find', 'Find'), field('replace', 'Replace by', {empty: 'nothing'}), check('match_case', 'Match upper and lower case'),
                check('regex', 'Regular expression')]},
        {action: 'remove_tag', title: 'Remove a tag', help: 'Takes a tag, between commas, out of every caption.', fields: [field('tag', 'Tag', {list: true})]},
        {action: 'rename_tag', title: 'Rename a tag', help: 'Writes a tag, between commas, differently.', 
            fields: [field('tag', 'Tag', {list: true}), field('to', 'New name')]},
        {action: 'deduplicate', title: 'Remove repetitions', help: 'Keeps the first of every tag that stands in a caption more than once.', fields: []},
        {action: 'sort', title: 'Sort tags', help: 'From A to Z.', fields: []},
        {action: 'order', title: 'Common tags first', 
            help: 'A safe order for training with shuffled tags: those to keep first, then what the whole data set shares, then the rest.',
            fields: [field('keep', 'Keep in front', {from: 'trigger_word', empty: 'for example: mycat, photo'})]},
    ];

    /** What an edit can be meant for, as choices with their file names. */
    function scopes({dataset, grid}) {
        const all = dataset.filenames();
        const shown = grid.shown();
        const selected = grid.selected();
        return [selected.length ? {value: 'selected', title: `Selected (${selected.length})`, filenames: selected} : null,
            grid.filtering() ? {value: 'shown', title: `Shown by the filter (${shown.length})`, filenames: [...shown]} : null,
            {value: 'all', title: `All (${all.length})`, filenames: all}].filter(Boolean);
    }

    /** Choose for which pictures: radio buttons, the narrowest first. */
    function createScope(context, onChange) {
        const choices = scopes(context);
        let chosen = choices[0];
        const name = `tl-scope-${Math.random().toString(36).slice(2)}`;
        const only = choices.length === 1 ? [h('p', {}, `All ${plural(choices[0].filenames.length, 'picture')}`)] : null;
        const element = h('fieldset.tl-scope', {}, h('legend.tl-label', {}, 'Pictures'), ...only || choices.map((choice) => h('label.tl-radio', {},
            h('input', {type: 'radio', name, value: choice.value, checked: choice === chosen, onchange: () => { chosen = choice; onChange(); }}), choice.title)));
        return {element, filenames: () => chosen.filenames, all: () => chosen.value === 'all', value: () => chosen.value};
    }

    /** `done(edited)` is called when captions were changed. */
    function openBulk({dataset, grid, triggerWord, done}) {
        let current = ACTIONS[0];
        let found = null;
        let number = 0;
        let timer = 0;
        const values = {};

        const scope = createScope({dataset, grid}, () => previewSoon(0));
        const actions = h('div.tl-bulk-actions', {role: 'radiogroup', 'aria-label': 'What to do'}, ...ACTIONS.map((entry) => h('label.tl-bulk-action', {},
            h('input', {type: 'radio', name: 'tl-bulk-action', value: entry.action, checked: entry === current, onchange: () => choose(entry)}),
            h('span', {}, entry.title))));
        const help = h('p.tl-help');
        const fields = h('div.tl-bulk-fields');
        const known = [...new Set(dataset.pictures().flatMap((picture) => picture.tags))].slice(0, MOST_TAGS);
        const tags = h('datalist', {id: 'tl-bulk-tags'}, ...known.map((tag) => h('option', {value: tag})));
        const error = h('p.tl-error', {role: 'alert', hidden: true});
        const count = h('p.tl-bulk-count', {'aria-live': 'polite'});
        const rows = h('ul.tl-changes');
        const go = button('Change nothing', () => apply(), 'primary');
        const dialog = openDialog({title: 'Edit captions', className: 'tl-bulk', onClose: () => clearTimeout(timer),
            body: [h('div.tl-bulk-what', {}, actions, scope.element),
                h('div.tl-bulk-how', {}, help, fields, tags, error, h('div.tl-bulk-preview', {}, count, rows))],
            foot: [button('Cancel', () => dialog.close()), go]});

        function choose(entry) {
            current = entry;
            setText(help, entry.help);
            fields.replaceChildren(...entry.fields.map(createInput));
            const first = fields.querySelector('input[type=text]');
            if (first) first.focus();
            previewSoon(0);
        }

        function createInput({name, title, type, from, empty, list}) {
            const id = `tl-bulk-${name}`;
            const key = `${current.action}.${name}`;
            if (type === 'bool') {
                const box = h('input.tl-check', {id, type: 'checkbox', checked: Boolean(values[key]), onchange: () => {
                    values[key] = box.checked;
                    previewSoon(0);
                }});
                return h('div.tl-field.tl-inline', {}, h('div.tl-label-line', {}, box, h('label.tl-label', {htmlFor: id}, title)));
            }
            if (values[key] === undefined) values[key] = from ? triggerWord : '';
            const input = h('input.tl-input', {id, type: 'text', value: values[key], placeholder: empty || '', autocomplete: 'off', spellcheck: false,
                oninput: () => { values[key] = input.value; previewSoon(); },
                onkeydown: (event) => event.key === 'Enter' && !event.isComposing && !go.disabled && apply()});
            if (list) input.setAttribute('list', 'tl-bulk-tags');
            return h('div.tl-field', {}, h('label.tl-label', {htmlFor: id}, title), input);
        }

        const valueOf = (name) => values[`${current.action}.${name}`];

        function request() {
            const body = {action: current.action};
            for (const {name, type} of current.fields) body[name] = type === 'bool' ? Boolean(valueOf(name)) : valueOf(name);
            return scope.all() ? body : {...body, filenames: scope.filenames()};
        }

        /** The field that must be filled before anything can be shown. */
        const missing = () => current.fields.find(({name, type}) => type !== 'bool' && !['replace', 'keep'].includes(name) && !(valueOf(name) || '').trim());

        function previewSoon(delay = PREVIEW_MS) {
            clearTimeout(timer);
            number += 1;                                                                   // An answer still under way is no longer wanted.
            go.disabled = true;
            timer = setTimeout(() => kit.link.whenBack(preview), delay);
        }

        async function preview() {
            const mine = number;
            if (missing()) return present(null);
            try {
                const answer = await dataset.preview(request());
                if (mine === number) present(answer);
            } catch (problem) {
                if (mine === number) present(null, problem);
            }
            return undefined;
        }

        function present(answer, problem) {
            found = answer;
            setText(error, problem ? problem.message : '');
            show(error, Boolean(problem));
            const wrong = problem ? `tl-bulk-${problem.field}` : '';
            for (const input of fields.querySelectorAll('input')) input.setAttribute('aria-invalid', String(input.id === wrong));
            const wanted = missing();
            setText(count, answer ? (answer.count ? `${plural(answer.count, 'caption')} will change, ${answer.unchanged} will not.` : 'No caption would change.')
                : wanted && !problem ? `Type the ${wanted.title.toLowerCase()} to see what will change.` : '');
            const changes = answer ? answer.changes : [];
            rows.replaceChildren(...changes.slice(0, MOST_ROWS).map((row) => changeRow(dataset, row)),
                ...(changes.length > MOST_ROWS ? [h('li.tl-muted', {}, `… and ${changes.length - MOST_ROWS} more`)] : []));
            rows.scrollTop = 0;
            go.disabled = !answer || !answer.count;
            setText(go, answer && answer.count ? `Change ${plural(answer.count, 'caption')}` : 'Change nothing');
        }

        async function apply() {
            go.disabled = true;
            try {
                const versions = Object.fromEntries(found.changes.map(({filename, version}) => [filename, version]));
                const edited = await dataset.bulk({...request(), versions});
                dialog.close();
                done(edited, found.count);
            } catch (problem) {
                const message = problem.code === 'changed_meanwhile' ? 'Captions were changed elsewhere meanwhile. Look at the changes again.' : problem.message;
                if (problem.code === 'changed_meanwhile') await dataset.load().then(preview, () => {});
                setText(error, message);
                show(error, true);
                go.disabled = problem.code !== 'changed_meanwhile';
            }
        }

        choose(current);
    }

    /** One caption before and after, with its picture. */
    function changeRow(dataset, {filename, before, after, line}) {
        const known = dataset.picture(filename);
        return h('li.tl-change-row', {}, known ? h('img.tl-change-image', {src: dataset.pictureUrl('thumbnails', filename), alt: '', loading: 'lazy'}) : null,
            h('div.tl-change-of', {}, h('span.tl-muted.tl-file', {}, line ? `Line ${line} · ${filename}` : filename), change(before || '', after || '')));
    }

    return {openBulk, createScope, changeRow};
};
