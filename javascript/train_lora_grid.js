/* The grid: every picture a card, its caption under it. One click puts the cursor into the caption.
 *
 * Cards keep their elements for as long as their picture is there; what is out of sight is not laid out (content-visibility), and a card
 * is always the same height, so that nothing jumps. A filter decides once which cards show: a card that no longer fits because its caption
 * was just written stays until the filter is touched again.
 */
(window.trainLora = window.trainLora || {parts: {}}).parts.grid = (kit) => {
    'use strict';
    const {h, show, setText, url, button, tool, remarksOf, plainLines} = kit;

    const DRAFT_MS = 400;
    const LONGEST_BOX_PX = 260;
    const SHORT = {small: 'Too small', near_duplicate: 'Near-duplicate', no_trigger: 'No trigger word', odd_ratio: 'Odd shape', shared_caption: 'Shared caption', two_captions: 'Two captions',
        lora_in_caption: 'LoRA in the caption', unreadable: 'Cannot be used'};
    const MARKS = {saving: 'Saving …', saved: 'Saved', failed: 'Not saved'};


    // --- A caption that is being written --------------------------------------------------------------------------------

    /** A text box for one picture's caption, here and in the detail view. `leave(direction)` is called when it has closed. */
    function createCaptionBox(picture, dataset, {leave, className = ''}) {
        const opened = picture.unsaved ?? picture.caption;
        let shown = opened;
        let closed = false;
        let timer = 0;
        const box = h(`textarea.tl-caption-box${className}`, {value: opened, rows: 3, spellcheck: false, 'aria-label': `Caption of ${picture.filename}`,
            placeholder: 'What is to be seen, in words or tags', title: 'Enter saves, Shift+Enter begins a new line'});
        box.isClean = () => box.value === shown;

        const stashDraft = () => { if (!closed && !box.isClean()) dataset.draft(picture.filename, box.value); };
        const grow = () => {
            box.style.height = 'auto';
            box.style.height = `${Math.min(LONGEST_BOX_PX, box.scrollHeight + 2)}px`;
        };

        function store() {
            clearTimeout(timer);
            const text = plainLines(box.value);
            if (text !== shown) dataset.save(picture.filename, text);
            else if (text === picture.caption && picture.unsaved === null) dataset.forget([picture.filename]);
            shown = text;
        }

        function close(direction = 0, keep = true) {
            if (closed) return;
            if (keep) store();
            else dataset.draft(picture.filename, picture.unsaved);
            closed = true;
            clearTimeout(timer);
            window.removeEventListener('pagehide', stashDraft);
            dataset.endEdit(picture.filename);
            leave(direction);
        }

        box.addEventListener('input', () => {
            grow();
            clearTimeout(timer);
            timer = setTimeout(stashDraft, DRAFT_MS);
        });
        box.addEventListener('blur', () => {
            if (closed) return;
            if (document.activeElement === box) store();                                   // Only the window lost the focus; the box stays open.
            else close(0);
        });
        box.addEventListener('keydown', (event) => {
            if (event.isComposing) return;
            if (event.key === 'Enter' && event.shiftKey) {                                 // A new line, and nothing for the card behind.
                event.stopPropagation();
                return;
            }
            const direction = event.key === 'Tab' && !event.ctrlKey && !event.altKey ? (event.shiftKey ? -1 : 1) : 0;
            if (event.key === 'Escape' || event.key === 'Enter' || direction) {
                event.preventDefault();
                event.stopPropagation();
                close(direction || event.key, event.key !== 'Escape');
            }
        });
        window.addEventListener('pagehide', stashDraft);

        /** The caption was changed by something else of this page, as an undo: show it, unless something else is being typed. */
        box.refresh = () => {
            const now = picture.unsaved ?? picture.caption;
            if (!box.isClean() || now === shown) return;
            box.value = shown = now;
            grow();
        };
        box.grow = grow;
        box.finish = () => close(0);
        dataset.beginEdit(picture.filename);
        return box;
    }

    /** The place in a text that was clicked, or its end. */
    function clickedPlace(element, event) {
        const node = element.firstChild;
        if (!node || !event || !event.detail) return Infinity;
        if (document.caretPositionFromPoint) {
            const place = document.caretPositionFromPoint(event.clientX, event.clientY);
            return place && place.offsetNode === node ? place.offset : Infinity;
        }
        const range = document.caretRangeFromPoint && document.caretRangeFromPoint(event.clientX, event.clientY);
        return range && range.startContainer === node ? range.startOffset : Infinity;
    }


    // --- A card -------------------------------------------------------------------------------------------------------

    function createCard(picture, {dataset, actions}) {
        const {filename} = picture;
        let box = null;
        let drawn = '';

        const image = h('img.tl-image', {alt: '', loading: 'lazy', decoding: 'async', draggable: false});
        const pick = h('input.tl-check.tl-pick', {type: 'checkbox', tabIndex: -1, 'aria-label': `Select ${filename}`, title: 'Select (space)'});
        const open = tool('expand', 'Open (Shift+Enter)', () => actions.open(filename), {tabIndex: -1});
        const frame = h('div.tl-frame', {}, image, pick, open);
        const words = h('span.tl-caption-text');
        const caption = h('button.tl-caption', {type: 'button', tabIndex: -1}, words);
        const slot = h('div.tl-slot', {}, caption);
        const remark = h('span.tl-remark');
        const mark = h('button.tl-mark', {type: 'button', tabIndex: -1, onclick: () => dataset.retry(true)});
        const auto = h('span.tl-auto', {title: 'Written by a captioner, and not changed since: automatic captions may replace it.'}, 'automatic');
        const foot = h('div.tl-foot', {}, remark, auto, mark);
        const element = h('li.tl-picture', {tabIndex: -1}, frame, slot, foot);
        element.dataset.filename = filename;
        let panel = null;

        frame.addEventListener('click', (event) => {
            if (open.contains(event.target)) return;
            if (event.target === pick) event.preventDefault();                             // The selection decides whether it is ticked.
            actions.select(filename, event);
        });
        frame.addEventListener('dblclick', (event) => { if (event.target !== pick && !open.contains(event.target)) actions.open(filename); });
        caption.addEventListener('click', (event) => edit(clickedPlace(words, event)));

        function edit(place = Infinity) {
            if (box || picture.conflict) return;
            box = createCaptionBox(picture, dataset, {leave: (direction) => {
                const old = box;
                box = null;
                element.classList.remove('tl-editing');
                old.replaceWith(caption);
                present();
                if (direction) actions.left(filename, direction);
            }});
            element.classList.add('tl-editing');
            caption.replaceWith(box);
            actions.activate(filename);
            box.focus({preventScroll: true});
            box.setSelectionRange(Math.min(place, box.value.length), Math.min(place, box.value.length));
            box.grow();
            element.scrollIntoView({block: 'nearest'});
            box.scrollIntoView({block: 'nearest'});
        }

        function present() {
            presentPicture();
            presentCaption();
            presentFoot();
            presentConflict();
        }

        function presentPicture() {
            const source = url(picture.thumbnail).href;
            if (drawn !== source) image.src = drawn = source;
            frame.title = `${filename}\n${picture.width} × ${picture.height}${picture.repeats > 1 ? `, ${picture.repeats} times an epoch` : ''}`;
        }

        function presentCaption() {
            if (box) return box.refresh();
            const text = picture.unsaved ?? picture.caption;
            setText(words, text || 'No caption');
            caption.classList.toggle('tl-none', !text);
            caption.title = text.length > 90 || text.includes('\n') ? text : '';
            caption.setAttribute('aria-label', `Caption of ${filename}: ${text || 'none'}. Edit`);
            return undefined;
        }

        function presentFoot() {
            const remarks = remarksOf(picture).filter(({code}) => code !== 'no_caption');   // That is to be seen anyway.
            setText(remark, remarks.length ? remarks.map((found) => inShort(found, picture)).join(' · ') : '');
            show(auto, picture.automatic && !MARKS[picture.mark]);
            remark.classList.toggle('tl-warned', remarks.length > 0);
            remark.title = remarks.map(({message}) => message).join('\n');
            setText(mark, MARKS[picture.mark] || '');
            mark.className = `tl-mark tl-mark-${picture.mark || 'none'}`;
            mark.title = picture.mark === 'failed' ? `${picture.message} Click to try again.` : '';
            mark.disabled = picture.mark !== 'failed';
            show(mark, Boolean(MARKS[picture.mark]));
        }

        function presentConflict() {
            if (Boolean(panel) === Boolean(picture.conflict)) return;
            if (panel) {
                panel.remove();
                panel = null;
                return;
            }
            panel = conflictPanel(picture, (mine) => dataset.resolve(filename, mine));
            element.append(panel);
            if (!document.activeElement.closest('textarea, input')) panel.scrollIntoView({block: 'nearest'});      // Its buttons, too.
        }

        return {element, filename, picture, edit, present, presentFoot, setSelected(selected) {
            element.classList.toggle('tl-selected', selected);
            pick.checked = selected;
        }, name: () => element.setAttribute('aria-label', `${filename}, ${picture.caption || 'no caption'}${pick.checked ? ', selected' : ''}`),
        finish: () => box && box.finish()};
    }

    /** What a remark says on the card; the whole sentence is its tooltip. */
    function inShort({code, message}, {check}) {
        if (code === 'long_caption' && check && check.tokens) return `${check.tokens} tokens`;
        return SHORT[code] || message;
    }

    function conflictPanel({filename, unsaved, conflict}, answer) {
        return h('div.tl-conflict', {role: 'alertdialog', 'aria-label': `The caption of ${filename} was changed elsewhere`},
            h('strong', {}, 'Changed elsewhere'),
            h('div.tl-conflict-texts', {}, h('span.tl-conflict-of', {}, 'Yours'), h('p', {}, unsaved || 'no caption'), h('span.tl-conflict-of', {}, 'On disk now'),
                h('p', {}, conflict.caption || 'no caption')),
            h('div.tl-actions', {}, button('Keep mine', () => answer(true)), button('Take theirs', () => answer(false))));
    }


    // --- The grid -----------------------------------------------------------------------------------------------------

    const ARROWS = new Set(['ArrowLeft', 'ArrowRight', 'ArrowUp', 'ArrowDown', 'Home', 'End', 'PageUp', 'PageDown']);

    /** `actions`: open(filename), trash(filenames), changed() when the selection or the filter changes what is shown. */
    function createGrid({actions}) {
        let dataset = null;
        let cards = new Map();
        let shown = [];
        let active = '';
        let anchor = '';
        const selected = new Set();
        const filter = {text: '', include: new Set(), exclude: new Set(), check: '', selectedOnly: false};

        const element = h('ul.tl-grid', {'aria-label': 'Pictures', onkeydown: (event) => keys(event)});
        const nothing = h('p.tl-nothing', {hidden: true});
        const box = h('div.tl-grid-box', {}, element, nothing);

        function setDataset(next) {
            dataset = next;
            cards = new Map();
            selected.clear();
            [active, anchor] = ['', ''];
            clearFilter();
            element.replaceChildren();
            element.scrollTop = 0;
        }

        /** Bring the cards in line with the pictures: those that stay keep their elements. */
        function sync() {
            const wanted = dataset ? dataset.pictures() : [];
            const names = new Set(wanted.map(({filename}) => filename));
            for (const [filename, card] of cards) {
                if (names.has(filename)) continue;
                card.element.remove();
                cards.delete(filename);
                selected.delete(filename);
            }
            let before = null;
            for (const picture of wanted) {
                let card = cards.get(picture.filename);
                if (!card || card.picture !== picture) {
                    if (card) card.element.remove();
                    card = createCard(picture, {dataset, actions: {open: actions.open, select, left, activate}});
                    cards.set(picture.filename, card);
                    card.present();
                }
                const place = before ? before.nextSibling : element.firstChild;
                if (place !== card.element) element.insertBefore(card.element, place);
                before = card.element;
            }
            applyFilter();
        }

        function present(filenames) {
            for (const filename of filenames) if (cards.has(filename)) cards.get(filename).present();
        }

        /** Only what the checks say: that comes for all cards at once. */
        function presentRemarks(filenames) {
            for (const filename of filenames) if (cards.has(filename)) cards.get(filename).presentFoot();
        }


        // --- Filter -------------------------------------------------------------------------------------------------------

        const filtering = () => Boolean(filter.text || filter.include.size || filter.exclude.size || filter.check || filter.selectedOnly);

        function clearFilter() {
            Object.assign(filter, {text: '', check: '', selectedOnly: false});
            filter.include.clear();
            filter.exclude.clear();
        }

        function fits(picture, words) {
            const caption = picture.caption.toLowerCase();
            if (filter.selectedOnly && !selected.has(picture.filename)) return false;
            if (filter.check && !remarksOf(picture).some(({code}) => code === filter.check)) return false;
            if (words.length && !words.every((word) => caption.includes(word) || picture.filename.toLowerCase().includes(word))) return false;
            if (!filter.include.size && !filter.exclude.size) return true;
            const tags = new Set(picture.tags);
            return [...filter.include].every((tag) => tags.has(tag)) && ![...filter.exclude].some((tag) => tags.has(tag));
        }

        function applyFilter() {
            const words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
            const all = !filtering();
            if (all) element.style.minHeight = '';
            else if (!element.style.minHeight) element.style.minHeight = `${element.offsetHeight}px`;        // What is below the grid stays where it is.
            shown = [];
            for (const picture of dataset ? dataset.pictures() : []) {
                const visible = all || fits(picture, words);
                const card = cards.get(picture.filename);
                if (card.element.hidden === visible) card.element.hidden = !visible;
                if (visible) shown.push(picture.filename);
            }
            setText(nothing, 'No picture fits this filter.');
            show(nothing, Boolean(dataset) && dataset.size() > 0 && !shown.length);
            if (!shown.includes(active)) setActive(shown[0] || '');
            actions.changed();
        }

        function setFilter(changes) {
            Object.assign(filter, changes);
            element.scrollTop = 0;
            applyFilter();
        }

        /** Turn a tag's filter on or off: with it (`include`) or without it (`exclude`). */
        function toggleTag(tag, kind) {
            const [on, off] = kind === 'exclude' ? [filter.exclude, filter.include] : [filter.include, filter.exclude];
            off.delete(tag);
            if (!on.delete(tag)) on.add(tag);
            setFilter({});
        }


        // --- Selection and movement ---------------------------------------------------------------------------------------

        function setActive(filename) {
            if (cards.has(active)) cards.get(active).element.tabIndex = -1;
            active = filename;
            if (!cards.has(active)) return;
            cards.get(active).element.tabIndex = 0;
            cards.get(active).name();
        }

        const activate = (filename) => setActive(filename);

        /** Give a card the focus. With the mouse nothing may move, or a second click would hit something else. */
        function focus(filename, {scroll = true} = {}) {
            if (!cards.has(filename)) return;
            setActive(filename);
            cards.get(filename).element.focus({preventScroll: true});
            if (scroll) cards.get(filename).element.scrollIntoView({block: 'nearest'});
        }

        /** Bring a card into sight without taking the focus, and mark it for a moment. */
        function reveal(filename) {
            const card = cards.get(filename).element;
            card.scrollIntoView({block: 'nearest'});
            card.classList.remove('tl-flash');
            requestAnimationFrame(() => card.classList.add('tl-flash'));
        }

        function select(filename, event = {}) {
            if (event.shiftKey && anchor && shown.includes(anchor)) {
                const [from, to] = [shown.indexOf(anchor), shown.indexOf(filename)].sort((a, b) => a - b);
                for (const name of shown.slice(from, to + 1)) selected.add(name);
            } else {
                if (!selected.delete(filename)) selected.add(filename);
                anchor = filename;
            }
            presentSelection();
            focus(filename, {scroll: !event.clientX && !event.clientY});
        }

        function selectAll(filenames) {
            selected.clear();
            for (const filename of filenames) selected.add(filename);
            presentSelection();
        }

        function presentSelection() {
            for (const [filename, card] of cards) card.setSelected(selected.has(filename));
            element.classList.toggle('tl-selecting', selected.size > 0);
            if (cards.has(active)) cards.get(active).name();
            actions.changed();
        }

        /** A caption was left: with Tab the next opens, with Enter or Escape the card keeps the focus. */
        function left(filename, direction) {
            const next = typeof direction === 'number' ? shown[shown.indexOf(filename) + direction] : '';
            if (next) cards.get(next).edit();
            else focus(filename);
        }

        /** How many cards stand in a row just now. */
        function perRow() {
            const tops = shown.slice(0, 40).map((filename) => cards.get(filename).element.offsetTop);
            return Math.max(1, tops.filter((top) => top === tops[0]).length);
        }

        function move(key, extend) {
            const at = Math.max(0, shown.indexOf(active));
            const row = perRow();
            const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row, PageUp: -3 * row, PageDown: 3 * row, Home: -at, End: shown.length - 1 - at};
            const to = at + steps[key];
            const next = shown[key.startsWith('Page') ? Math.min(shown.length - 1, Math.max(0, to)) : to];
            if (!next) return;
            if (extend) {
                if (!anchor || !selected.size) anchor = active;
                select(next, {shiftKey: true});
            } else focus(next);
        }

        function keys(event) {
            if (event.target.closest('textarea, input:not([type=checkbox])') || event.altKey) return;
            const control = event.ctrlKey || event.metaKey;
            const card = event.target.closest('.tl-picture');
            const onCard = card && event.target === card;
            if (ARROWS.has(event.key) && !control) move(event.key, event.shiftKey);
            else if (control && event.key.toLowerCase() === 'a') selectAll(shown);
            else if (event.key === 'Escape' && selected.size) selectAll([]);
            else if (onCard && event.key === 'Enter' && !control) event.shiftKey ? actions.open(active) : cards.get(active).edit();
            else if (onCard && event.key === 'F2') cards.get(active).edit();
            else if (onCard && event.key === ' ') select(active, event);
            else if (onCard && event.key === 'Delete') actions.trash(selected.size ? [...selected] : [active]);
            else return;
            event.preventDefault();
            event.stopPropagation();
        }

        function showAll() {
            clearFilter();
            applyFilter();
        }

        return {element: box, setDataset, sync, present, presentRemarks, focus, reveal, setFilter, toggleTag, showAll, filter, filtering, shown: () => shown, selectAll,
            selected: () => (selected.size ? dataset.filenames().filter((filename) => selected.has(filename)) : []),
            finish: () => cards.forEach((card) => card.finish())};
    }

    return {createGrid, createCaptionBox};
};
