/* The strip of tags above the grid: what the captions say and how often. A click filters, with Shift it excludes; the menu renames or removes. */
(window.trainLora = window.trainLora || {parts: {}}).parts.tags = (kit) => {
    'use strict';
    const {h, show, setText, plural, tool, iconButton, openDialog, openMenu, button} = kit;

    const COLLAPSED_TAGS = 40;

    /** `grid` filters; `act`: rename(tag, to) and remove(tag), each everywhere. */
    function createTags({grid, act}) {
        let dataset = null;
        let open = false;
        let search = '';
        const chips = new Map();

        const list = h('div.tl-tags', {role: 'group', 'aria-label': 'Tags', onkeydown: (event) => walk(event)});
        list.addEventListener('scroll', () => { if (!open) list.scrollTop = 0; });            // A focus behind its edge would move it.
        const more = iconButton('', 'Every tag of these pictures', () => { open = !open; present(); });
        more.classList.add('tl-tags-more');
        const find = h('input.tl-input.tl-tag-search', {type: 'search', placeholder: 'Find a tag', 'aria-label': 'Find a tag', oninput: () => {
            search = find.value.trim().toLowerCase();
            present();
        }});
        const element = h('div.tl-tag-strip', {hidden: true}, list, h('div.tl-tag-side', {}, find, more));

        function setDataset(next) {
            [dataset, open, search, find.value] = [next, false, '', ''];
            chips.clear();
            list.replaceChildren();
        }

        /** Tags of the pictures that are shown, commonest first; those that filter come first and stay, whatever is left of them. */
        function counted() {
            const counts = new Map();
            for (const filename of grid.shown()) for (const tag of new Set(dataset.picture(filename).tags)) counts.set(tag, (counts.get(tag) || 0) + 1);
            const chosen = [...grid.filter.include, ...grid.filter.exclude];
            const rest = [...counts].filter(([tag]) => !chosen.includes(tag)).sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0]));
            return [...chosen.map((tag) => [tag, counts.get(tag) || 0]), ...rest];
        }

        function present() {
            const all = dataset ? counted() : [];
            const found = open && search ? all.filter(([tag]) => tag.toLowerCase().includes(search)) : all;
            const wanted = open ? found : all.slice(0, COLLAPSED_TAGS);
            const focused = document.activeElement && document.activeElement.closest('.tl-chip');
            list.replaceChildren(...wanted.map(([tag, count]) => chip(tag, count)));
            const names = [...list.querySelectorAll('.tl-chip-name')];
            names.forEach((name, index) => { name.tabIndex = index ? -1 : 0; });
            if (focused && list.contains(focused)) focused.querySelector('.tl-chip-name').focus({preventScroll: true});
            for (const tag of [...chips.keys()]) if (!all.some(([other]) => other === tag)) chips.delete(tag);
            element.classList.toggle('tl-open', open);
            setText(more, open ? 'Fewer tags' : `All ${plural(all.length, 'tag')}`);
            more.setAttribute('aria-expanded', String(open));
            show(find, open);
            show(element, all.length > 0 || grid.filtering());
        }

        /** The strip is one stop of the Tab key; the arrows go along it, as far as it is to be seen. */
        function walk(event) {
            const names = [...list.querySelectorAll('.tl-chip-name')].filter((name) => open || name.parentElement.offsetTop - list.offsetTop < list.clientHeight);
            const at = names.indexOf(event.target);
            const next = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: names.length - 1}[event.key];
            if (at < 0 || next === undefined) return;
            event.preventDefault();
            if (names[next]) names[next].focus();
        }

        function chip(tag, count) {
            if (!chips.has(tag)) chips.set(tag, createChip(tag));
            const made = chips.get(tag);
            const state = grid.filter.include.has(tag) ? 'with' : grid.filter.exclude.has(tag) ? 'without' : '';
            made.present(count, state);
            return made.element;
        }

        function createChip(tag) {
            const number = h('span.tl-chip-count');
            const not = h('span.tl-chip-not', {hidden: true}, 'not');
            const name = h('button.tl-chip-name', {type: 'button', title: tag.length > 28 ? tag : '',
                onclick: (event) => grid.toggleTag(tag, event.shiftKey ? 'exclude' : stateOf(tag) === 'without' ? 'exclude' : 'include')}, not,
            h('span.tl-chip-text', {}, tag), number);
            const dots = tool('dots', `More for ${tag}`, () => menu(tag, dots), {tabIndex: -1, 'aria-haspopup': 'menu'});
            const element = h('div.tl-chip', {oncontextmenu: (event) => {
                event.preventDefault();
                menu(tag, event.clientX || event.clientY ? {x: event.clientX, y: event.clientY} : element);
            }}, name, dots);
            return {element, present(count, state) {
                setText(number, String(count));
                show(not, state === 'without');
                element.className = `tl-chip${state && ` tl-${state}`}`;
                name.setAttribute('aria-pressed', state ? 'true' : 'false');
                name.setAttribute('aria-label', `${state === 'without' ? 'Without ' : ''}${tag}, ${plural(count, 'picture')}`);
            }};
        }

        const stateOf = (tag) => (grid.filter.include.has(tag) ? 'with' : grid.filter.exclude.has(tag) ? 'without' : '');

        function menu(tag, where) {
            const state = stateOf(tag);
            openMenu(where, [
                {label: state === 'with' ? 'Stop filtering' : 'Show only with it', hint: 'Click', act: () => grid.toggleTag(tag, 'include')},
                {label: state === 'without' ? 'Stop excluding' : 'Show only without it', hint: 'Shift+click', act: () => grid.toggleTag(tag, 'exclude')}, null,
                {label: 'Rename everywhere …', act: () => askName(tag)},
                {label: 'Remove everywhere', danger: true, act: () => act.remove(tag)},
            ], `Tag ${tag}`);
        }

        function askName(tag) {
            const everywhere = dataset.pictures().filter(({tags}) => tags.includes(tag)).length;
            const input = h('input.tl-input', {id: 'tl-rename-tag', type: 'text', value: tag, autocomplete: 'off', spellcheck: false,
                onkeydown: (event) => event.key === 'Enter' && !event.isComposing && done()});
            const done = () => {
                const to = input.value.trim();
                dialog.close();
                if (to && to !== tag) act.rename(tag, to);
            };
            const dialog = openDialog({title: 'Rename a tag', className: 'tl-ask', body: [h('div.tl-field', {},
                h('label.tl-label', {htmlFor: 'tl-rename-tag'}, `New name, in ${plural(everywhere, 'caption')}`), input)],
            foot: [button('Cancel', () => dialog.close()), button('Rename', done, 'primary')]});
            input.select();
        }

        return {element, setDataset, present};
    }

    return {createTags};
};
