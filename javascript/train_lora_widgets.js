/* Small things that several parts of the tab use: icons, dialogs, menus, toasts, and how a changed text is shown. */
(window.trainLora = window.trainLora || {parts: {}}).parts.widgets = (kit) => {
    'use strict';
    const {h, setText, button, outside} = kit;

    const TOAST_MS = 6000;
    const SVG = 'http://www.w3.org/2000/svg';

    /** Strokes on a 16 × 16 field. */
    const ICONS = {
        undo: 'M6 3 2.5 6.5 6 10 M2.5 6.5H9.5a4 4 0 0 1 0 8H7',
        redo: 'M10 3 13.5 6.5 10 10 M13.5 6.5H6.5a4 4 0 0 0 0 8H9',
        expand: 'M9.5 2.5h4v4 M6.5 13.5h-4v-4 M13.5 2.5 9 7 M2.5 13.5 7 9',
        shrink: 'M13 7H9V3 M3 9h4v4 M9 7l4.5-4.5 M7 9l-4.5 4.5',
        dots: 'M3.5 8h.01 M8 8h.01 M12.5 8h.01',
        close: 'M4 4l8 8 M12 4l-8 8',
        left: 'M10 3 5 8l5 5',
        right: 'M6 3l5 5-5 5',
        down: 'M3.5 6 8 10.5 12.5 6',
        search: 'M7 11.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9z M10.5 10.5 14 14',
        rotateLeft: 'M3 3v3.5h3.5 M3.3 6.2A5.3 5.3 0 1 1 2.8 9',
        rotateRight: 'M13 3v3.5H9.5 M12.7 6.2A5.3 5.3 0 1 0 13.2 9',
        trash: 'M2.5 4.5h11 M6 4V2.5h4V4 M4 4.5l.7 9h6.6l.7-9 M6.7 7v4 M9.3 7v4',
        up: 'M3.5 10 8 5.5 12.5 10',
        grip: 'M6 4h.01 M6 8h.01 M6 12h.01 M10 4h.01 M10 8h.01 M10 12h.01',
        pause: 'M5.5 3.5v9 M10.5 3.5v9',
        play: 'M5 3.2v9.6L12.5 8z',
        stop: 'M4.5 4.5h7v7h-7z',
        camera: 'M2.5 5h2.6l1-1.5h3.8l1 1.5h2.6v7.5h-11z M8 10.8a2.2 2.2 0 1 0 0-4.4 2.2 2.2 0 0 0 0 4.4z',
        copy: 'M5.5 5.5h8v8h-8z M10.5 5.5v-3h-8v8h3',
        pen: 'M3 13l.6-2.8L10.7 3 13 5.3 5.8 12.4 3 13z',
        words: 'M2.5 4h11 M2.5 8h7 M2.5 12h9',
        addPictures: 'M8.5 13.5h-7v-8h10v2.5 M4 3h10v4.5 M1.8 11.6l2.7-2.6 2 2 1.7-1.7 1.2 1.2 M12.5 10v5 M10 12.5h5',
        addPicture: 'M9.5 12.5h-8v-10h12v5.5 M1.5 10l3.2-3.2 2.6 2.6 2-2 1.7 1.7 M10.2 5.4h.01 M12.5 10v5 M10 12.5h5',
    };

    function icon(name) {
        const svg = document.createElementNS(SVG, 'svg');
        const path = document.createElementNS(SVG, 'path');
        const looks = {viewBox: '0 0 16 16', width: 16, height: 16, fill: 'none', stroke: 'currentcolor', 'stroke-width': 1.5, 'stroke-linecap': 'round',
            'stroke-linejoin': 'round', class: 'tl-icon', 'aria-hidden': 'true', focusable: 'false'};                  // Not in the style sheet: some stand outside of the tab.
        for (const [key, value] of Object.entries(looks)) svg.setAttribute(key, value);
        svg.style.flex = 'none';
        svg.style.maxWidth = 'none';
        path.setAttribute('d', ICONS[name]);
        svg.append(path);
        return svg;
    }

    /** A square button that shows an icon and says its name to those who cannot see it. */
    const tool = (name, title, onclick, more = {}) =>
        h('button.tl-tool', {type: 'button', title, 'aria-label': title, onclick, ...more}, icon(name));

    const app = () => outside().querySelector('#train_lora_app .tl-app');


    // --- Dialogs ------------------------------------------------------------------------------------------------------

    /** Open a modal dialog inside the tab. `keys` may take a key press first; focus goes back to where it was. */
    function openDialog({title, className = '', body, foot = [], head = [], keys = () => false, onClose = () => {}}) {
        const before = document.activeElement;
        const heading = h('h3.tl-title', {id: `tl-dialog-title-${openDialog.count = (openDialog.count || 0) + 1}`}, title);
        const element = h(`dialog.tl-dialog${className && `.${className}`}`, {'aria-labelledby': heading.id},
            h('div.tl-dialog-head', {}, heading, ...head, tool('close', 'Close (Esc)', () => element.close())),
            h('div.tl-dialog-body', {}, ...body), foot.length ? h('div.tl-dialog-foot', {}, ...foot) : null);
        element.addEventListener('keydown', (event) => {
            event.stopPropagation();                                                       // The WebUI listens for keys on the whole page.
            keys(event);
        });
        element.addEventListener('pointerdown', (event) => { if (event.target === element && outsideOf(element, event)) element.close(); });
        element.addEventListener('close', () => {
            element.remove();
            onClose();
            focusAgain(before);
        });
        app().append(element);
        element.showModal();
        return {element, heading, close: () => element.close()};
    }

    /** Focus what had it; where nothing had, or it cannot have it any more, the pictures, so that their keys work. */
    function focusAgain(before) {
        if (before && before.isConnected) before.focus({preventScroll: true});
        const pictures = app().querySelector('#tl-pictures');
        if (document.activeElement === document.body && pictures) pictures.focus({preventScroll: true});
    }

    function outsideOf(element, {clientX, clientY}) {
        const box = element.getBoundingClientRect();
        return clientX < box.left || clientX > box.right || clientY < box.top || clientY > box.bottom;
    }

    /** Ask a question; `answers` are {label, kind?, value}. Resolves to the value, or to null when it was closed. */
    function ask({title, text, list = [], answers, className = ''}) {
        return new Promise((resolve) => {
            let chosen = null;
            const pick = (value) => { chosen = value; dialog.close(); };
            const dialog = openDialog({title, className: ['tl-ask', className].filter(Boolean).join('.'), onClose: () => resolve(chosen),
                body: [h('p', {}, text), list.length ? h('ul.tl-list', {}, ...list.slice(0, 100).map((line) => h('li', {}, line))) : null].filter(Boolean),
                foot: [button(answers.length ? 'Cancel' : 'Close', () => dialog.close()), ...answers.map(({label, kind, value}) => button(label, () => pick(value), kind))]});
        });
    }


    // --- Menus --------------------------------------------------------------------------------------------------------

    /** Open a menu at a point, or under an element. `items`: {label, hint?, disabled?, danger?, act} or null for a line. */
    function openMenu(where, items, label = 'Actions') {
        const before = document.activeElement;
        const rows = items.map((item) => (item ? h(`button.tl-menu-item${item.danger ? '.tl-danger' : ''}`, {type: 'button', role: 'menuitem', tabIndex: -1,
            disabled: Boolean(item.disabled), onclick: () => { close(); item.act(); }}, h('span', {}, item.label), item.hint ? h('kbd.tl-key-hint', {}, item.hint) : null)
            : h('hr.tl-menu-line')));
        const choices = rows.filter((row) => row.tagName === 'BUTTON' && !row.disabled);
        const menu = h('div.tl-menu', {role: 'menu', 'aria-label': label}, ...rows);
        const within = (where instanceof Element && where.closest('dialog')) || document.querySelector('dialog.tl-dialog[open]') || app();

        function close() {
            document.removeEventListener('pointerdown', leave, true);
            menu.remove();
            if (before && before.isConnected) before.focus({preventScroll: true});
        }
        const leave = (event) => { if (!menu.contains(event.target)) close(); };

        menu.addEventListener('keydown', (event) => {
            event.stopPropagation();
            const at = choices.indexOf(document.activeElement);
            const next = {ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: choices.length - 1}[event.key];
            if (next !== undefined) choices[(next + choices.length) % choices.length].focus();
            if (event.key === 'Escape' || event.key === 'Tab') close();
            if (next !== undefined || event.key === 'Escape' || event.key === 'Tab') event.preventDefault();
        });
        within.append(menu);
        if (menu.showPopover) { menu.popover = 'manual'; menu.showPopover(); }             // Above everything, whatever clips or scrolls around it.
        place(menu, where);
        document.addEventListener('pointerdown', leave, true);
        if (choices.length) choices[0].focus();
        return close;
    }

    function place(menu, where) {
        const box = where instanceof Element ? where.getBoundingClientRect() : {left: where.x, bottom: where.y, top: where.y};
        const card = where instanceof Element && where.closest('.tl-card');
        const edges = card ? card.getBoundingClientRect() : {left: 0, right: window.innerWidth};
        const left = Math.max(8, Math.min(box.left, Math.min(edges.right, window.innerWidth) - menu.offsetWidth - 8));
        const below = box.bottom + 4 + menu.offsetHeight < window.innerHeight;
        menu.style.left = `${left}px`;
        menu.style.top = `${Math.max(8, below ? box.bottom + 4 : box.top - menu.offsetHeight - 4)}px`;
    }


    // --- Words for screen readers ------------------------------------------------------------------------------------

    const SAID_MS = 6000;
    const sayings = new WeakMap();

    /** Say something in a live region, and take it out of the page's text again when it was heard. */
    function say(region, text) {
        clearTimeout(sayings.get(region));
        setText(region, text);
        sayings.set(region, setTimeout(() => setText(region, ''), SAID_MS));
    }


    // --- Toasts -------------------------------------------------------------------------------------------------------

    /** Say something for a moment, above whichever tab of the WebUI is in front. `action`: {label, act}. */
    function toast(text, action) {
        let place = document.getElementById('train_lora_toasts');
        if (!place) document.body.append(place = h('div', {id: 'train_lora_toasts', role: 'status', 'aria-live': 'polite'}));
        const note = h('div.tl-toast', {}, h('span', {}, text), action ? h('button.tl-toast-action', {type: 'button',
            onclick: () => { note.remove(); action.act(); }}, action.label) : null);
        place.replaceChildren(note);
        const open = document.querySelector('dialog.tl-dialog[open]');
        if (place.showPopover) {                                                           // A dialog is in the top layer: only what comes later is above it.
            place.popover = 'manual';
            if (place.matches(':popover-open')) place.hidePopover();
            place.showPopover();
        } else if (open) open.append(place);
        let timer = 0;
        const leave = () => { timer = setTimeout(() => note.remove(), TOAST_MS); };
        note.addEventListener('pointerenter', () => clearTimeout(timer));
        note.addEventListener('pointerleave', leave);
        leave();
    }


    // --- Changed texts ------------------------------------------------------------------------------------------------

    const MOST_WORDS = 400;

    /** Show a text before and after: what stays is plain, what goes and what comes is marked. */
    function change(before, after) {
        const [old, fresh] = marked(wordsOf(before), wordsOf(after));
        return h('div.tl-change', {}, h('p.tl-before', {}, ...(before ? pieces(old, 'del') : [h('span.tl-none', {}, 'no caption')])),
            h('p.tl-after', {}, ...(after ? pieces(fresh, 'ins') : [h('span.tl-none', {}, 'no caption')])));
    }

    const wordsOf = (text) => text.split(/(?<=[\s,])|(?=,)/).filter(Boolean);

    /** Tell for the words of two texts whether they are in both, in the same order: [[word, same], …] for each. */
    function marked(before, after) {
        if (before.length > MOST_WORDS || after.length > MOST_WORDS) return [before, after].map((words) => words.map((word) => [word, false]));
        const lengths = Array.from({length: before.length + 1}, () => new Uint16Array(after.length + 1));
        for (let i = before.length - 1; i >= 0; i -= 1) {
            for (let j = after.length - 1; j >= 0; j -= 1) {
                lengths[i][j] = before[i] === after[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
            }
        }
        const [old, fresh] = [[], []];
        let [i, j] = [0, 0];
        while (i < before.length || j < after.length) {
            const same = i < before.length && j < after.length && before[i] === after[j];
            const gone = !same && (j >= after.length || (i < before.length && lengths[i + 1][j] >= lengths[i][j + 1]));
            if (same || gone) old.push([before[i++], same]);
            if (same || !gone) fresh.push([after[j++], same]);
        }
        return [old, fresh];
    }

    /** Runs of words as text and marks. */
    function pieces(words, mark) {
        const runs = [];
        for (const [word, same] of words) {
            const last = runs[runs.length - 1];
            if (last && last.same === same) last.text += word;
            else runs.push({same, text: word});
        }
        return runs.map(({same, text}) => (same ? text : h(mark, {}, text)));
    }

    return {icon, tool, openDialog, ask, openMenu, toast, say, change, app};
};
