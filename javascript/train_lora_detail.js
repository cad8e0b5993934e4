/* One picture, large: what the trainer will see of it, what is wrong with it, its twins side by side, and its caption. */
(window.trainLora = window.trainLora || {parts: {}}).parts.detail = (kit) => {
    'use strict';
    const {h, show, setText, button, tool, icon, openDialog, createCaptionBox, remarksOf} = kit;

    const VIEWS = [['picture', 'Picture'], ['frame', 'Crop'], ['crop', 'As the trainer sees it']];

    /** `actions`: trash(filenames), rotate(filenames, degrees), rename(filename, to), historyKeys(event), closed(filename). */
    function openDetail(filename, {dataset, grid, actions}) {
        let current = filename;
        let view = 'picture';
        let twin = '';
        let box = null;
        let renaming = false;
        let named = '';                                                                    // The picture whose name stands in the field.
        let order = [];                                                                    // As last shown: where a picture that is gone has stood.

        const image = h('img.tl-detail-image', {alt: '', draggable: false, onload: () => presentCrop()});
        const cut = h('div.tl-crop', {hidden: true, 'aria-hidden': 'true'});
        const stage = h('div.tl-stage-box', {}, h('div.tl-stage-fit', {}, image, cut));
        const views = h('div.tl-segments', {role: 'radiogroup', 'aria-label': 'View'}, ...VIEWS.map(([value, title]) => h('label.tl-segment', {},
            h('input', {type: 'radio', name: 'tl-detail-view', value, checked: value === view, onchange: () => { view = value; presentImage(); }}), title)));
        const note = h('p.tl-help.tl-detail-note');
        const compare = h('div.tl-compare', {hidden: true});

        const name = h('input.tl-input', {id: 'tl-detail-name', type: 'text', autocomplete: 'off', spellcheck: false, onkeydown: (event) => {
            if (event.key === 'Enter' && !event.isComposing) rename();
            if (event.key !== 'Escape') return;
            event.preventDefault();
            event.stopPropagation();
            presentName();
            name.blur();
        }, oninput: () => presentRename(), onblur: () => setTimeout(() => document.activeElement !== renameButton && presentName(), 150)});
        const ending = h('span.tl-unit');
        const renameButton = button('Rename', () => rename());
        const nameError = h('p.tl-error', {role: 'alert', hidden: true});
        const facts = h('dl.tl-facts');
        const remarks = h('ul.tl-remarks');
        const twins = h('div.tl-twins', {hidden: true});
        const slot = h('div.tl-detail-caption');
        const state = h('p.tl-help', {role: 'status'});
        const conflict = h('div.tl-notice.tl-warn', {hidden: true});
        const place = h('span.tl-muted.tl-place');

        const side = h('div.tl-detail-side', {},
            h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-detail-caption'}, 'Caption'), slot, state, conflict), remarks, twins, facts,
            h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-detail-name'}, 'File name'),
                h('div.tl-joined', {}, h('div.tl-control.tl-has-unit.tl-grow', {}, name, ending), renameButton), nameError),
            h('div.tl-actions.tl-detail-actions', {}, framed('rotateLeft', 'Rotate left', () => turn(270)), framed('rotateRight', 'Rotate right', () => turn(90)),
                h('span.tl-spring'), withIcon('trash', 'Delete', () => remove(current))));
        const dialog = openDialog({title: 'Picture', className: 'tl-detail', onClose: () => { closed(); actions.closed(current); }, keys,
            head: [place, tool('left', 'Previous picture (←, Alt+← while writing)', () => step(-1)),
                tool('right', 'Next picture (→, Alt+→ while writing)', () => step(1))],
            body: [h('div.tl-detail-main', {}, stage, compare, h('div.tl-detail-views', {}, views, note)), side]});

        function framed(kind, title, act) {
            const made = tool(kind, title, act);
            made.classList.add('tl-framed');
            return made;
        }

        function withIcon(kind, title, act) {
            const made = button('', act);
            made.append(icon(kind), title);
            return made;
        }

        const picture = () => dataset.picture(current);
        const among = () => (grid.shown().includes(current) ? grid.shown() : dataset.filenames());

        function step(direction) {
            const list = among();
            const next = list[list.indexOf(current) + direction];
            if (next) go(next);
        }

        function go(next) {
            const writing = box && document.activeElement === box;
            closed();
            [current, twin] = [next, ''];
            present();
            if (writing) box.focus();
        }

        function closed() {
            const old = box;
            box = null;
            if (old) old.finish();
        }

        function present() {
            if (renaming) return undefined;                                                // Its old name is gone and its new one not yet known.
            if (!picture()) return vanish();
            const list = order = among();
            setText(dialog.heading, current);
            dialog.heading.title = current;
            setText(place, `${list.indexOf(current) + 1} of ${list.length}`);
            presentImage();
            if (named !== current || ![name, renameButton].includes(document.activeElement)) presentName();    // What is being typed stays.
            presentFacts();
            presentRemarks();
            presentTwins();
            presentCaption();
            return undefined;
        }

        /** The picture is gone (deleted, renamed elsewhere): show its neighbour. */
        function vanish() {
            const at = order.indexOf(current);
            const list = grid.shown().length ? grid.shown() : dataset.filenames();
            const next = [...order.slice(at + 1), ...order.slice(0, Math.max(0, at)).reverse(), ...list].find((file) => list.includes(file));
            if (next) go(next);
            else dialog.close();
        }

        function presentImage() {
            show(stage, !twin);
            show(compare, Boolean(twin));
            const source = view === 'crop' ? dataset.cropUrl(current) : dataset.pictureUrl('previews', current);
            if (image.src !== source) image.src = source;
            image.alt = current;
            const {check} = picture();
            const [width, height] = (check && check.crop && check.crop.bucket) || [];
            const kept = width ? Math.round(100 * check.crop.width * check.crop.height / (picture().width * picture().height)) : 100;
            const larger = width ? Math.round(10 * width / check.crop.width) / 10 : 1;
            setText(note, !width ? '' : `Trained at ${width} × ${height}${larger > 1 ? ` (enlarged ${larger} times)` : ''}, ${kept < 99 ? `${100 - kept} % cut off` : 'nothing cut off'}`);
            presentCrop();
        }

        /** Shade what the trainer will not see. */
        function presentCrop() {
            const {check, width, height} = picture() || {};
            const crop = check && check.crop;
            show(cut, view === 'frame' && Boolean(crop));
            if (!crop) return;
            const part = (value, whole) => `${Math.max(0, Math.min(100, 100 * value / whole))}%`;
            Object.assign(cut.style, {left: part(crop.left, width), top: part(crop.top, height), width: part(crop.width, width), height: part(crop.height, height)});
        }

        const stemOf = (file) => file.split('/').pop().replace(/\.[^.]*$/, '');

        function presentName() {
            named = current;
            name.value = stemOf(current);
            setText(ending, (/\.[^.]*$/.exec(current) || [''])[0]);
            show(nameError, false);
            presentRename();
        }

        function presentRename() {
            show(renameButton, name.value.trim() !== stemOf(current));
        }

        function presentFacts() {
            const {width, height, repeats, check, automatic} = picture();
            const rows = [['Size', `${width} × ${height}`], ['Tokens', check && Number.isFinite(check.tokens) ? `${check.tokens} of 75` : '–'],
                ['Bucket', check && check.crop ? check.crop.bucket.join(' × ') : '–'], repeats > 1 ? ['Repeats', String(repeats)] : null,
                picture().caption ? ['Caption', automatic ? 'automatic' : 'written by hand'] : null];
            facts.replaceChildren(...rows.filter(Boolean).map(([title, value]) => h('div', {}, h('dt', {}, title), h('dd', {}, value))));
        }

        function presentRemarks() {
            const found = remarksOf(picture()).filter(({code}) => code !== 'near_duplicate');
            remarks.replaceChildren(...found.map(({message}) => h('li', {}, message)));
            show(remarks, found.length > 0);
        }

        function presentTwins() {
            const {check} = picture();
            const found = ((check && check.duplicates) || []).filter((other) => dataset.picture(other));
            if (twin && !found.includes(twin)) twin = '';
            twins.replaceChildren(h('span.tl-label', {}, found.length === 1 ? 'Nearly the same picture' : `${found.length} nearly the same pictures`),
                h('div.tl-twin-row', {}, ...found.map(twinButton)));
            show(twins, found.length > 0);
            compare.replaceChildren(...(twin ? [figureOf(current), figureOf(twin)] : []));
            show(views, !twin);
            show(note, !twin);
        }

        function twinButton(other) {
            const words = `Compare with ${other}`;
            return h('button.tl-twin', {type: 'button', title: words, 'aria-label': words, 'aria-pressed': String(other === twin), onclick: () => {
                twin = twin === other ? '' : other;
                presentTwins();
                presentImage();
            }}, h('img', {src: dataset.pictureUrl('thumbnails', other), alt: ''}));
        }

        function figureOf(file) {
            const {width, height, caption} = dataset.picture(file);
            return h('figure.tl-figure', {}, h('img', {src: dataset.pictureUrl('previews', file), alt: file}),
                h('figcaption', {}, h('strong.tl-file', {}, file), h('span.tl-muted', {}, `${width} × ${height}`), h('p', {}, caption || 'No caption')),
                withIcon('trash', 'Delete this one', () => remove(file)));
        }

        function presentCaption() {
            if (box && box.picture !== picture()) closed();
            if (!box) {
                box = createCaptionBox(picture(), dataset, {className: '.tl-detail-box', leave: (direction) => {
                    if (!box) return;                                                      // Another picture is about to be shown.
                    box = null;
                    presentCaption();
                    if (typeof direction === 'number' && direction) step(direction);
                    else if (direction) stage.focus();
                    else return;
                    if (typeof direction === 'number' && box) box.focus();
                }});
                box.picture = picture();
                box.id = 'tl-detail-caption';
                slot.replaceChildren(box);
                requestAnimationFrame(() => box && box.grow());
            } else box.refresh();
            const {mark, message, conflict: other} = picture();
            setText(state, {saving: 'Saving …', saved: 'Saved', failed: `Not saved: ${message}`}[mark] || '');
            state.classList.toggle('tl-error', mark === 'failed');
            show(conflict, Boolean(other));
            if (other) conflict.replaceChildren(h('strong', {}, 'Changed elsewhere meanwhile'), h('p', {}, other.caption || 'no caption'),
                h('div.tl-actions', {}, button('Keep mine', () => dataset.resolve(current, true)), button('Take theirs', () => dataset.resolve(current, false))));
        }

        async function rename() {
            const to = name.value.trim();
            if (!to || to === stemOf(current)) return presentName();
            closed();
            renaming = true;
            try {
                current = (await actions.rename(current, to)).filename || current;
                renaming = false;
                if (dialog.element.open) present();
            } catch (error) {
                renaming = false;
                setText(nameError, error.message);
                show(nameError, true);
                presentCaption();
            }
            return undefined;
        }

        const turn = (degrees) => actions.rotate([current], degrees);

        async function remove(file) {
            const list = among();
            const at = list.indexOf(current);
            const next = list[at + 1] || list[at - 1];
            if (file === current) closed();
            if (await actions.trash([file])) {
                if (file !== current) present();
                else if (next) go(next);
                else dialog.close();
            } else present();
        }

        function keys(event) {
            const typing = event.target.closest('textarea, input[type=text]');
            const direction = {ArrowLeft: -1, ArrowRight: 1}[event.key];
            if (actions.historyKeys(event)) return;
            const onRadio = event.target.closest('[role=radiogroup]');
            if (direction && (typing ? event.altKey && typing === box : !event.altKey && !onRadio)) step(direction);
            else if (event.key === 'Delete' && !typing) remove(current);
            else return;
            event.preventDefault();
        }

        stage.tabIndex = 0;
        stage.setAttribute('aria-label', 'Picture; the arrow keys go to the next and the previous one');
        present();
        stage.focus();
        return {present: () => { if (dialog.element.open) present(); }, isOpen: () => dialog.element.open, close: () => dialog.close()};
    }

    return {openDetail};
};
