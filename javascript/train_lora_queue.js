/* The queue: what waits for its turn, moved by dragging or by its buttons, taken out again, and held after a restart until somebody starts it. */
(window.trainLora = window.trainLora || {parts: {}}).parts.queue = (kit) => {
    'use strict';
    const {h, show, setText, button, icon, tool, plural, post, toast, feed, isTraining, nameOf, amountOf, jobs, checkpointName, say} = kit;

    const whatOf = (job) => [isTraining(job) ? '' : 'Captions', picturesOf(job), amountOf(job), otherCheckpoint(job)].filter(Boolean).join(' · ');
    const picturesOf = (job) => (Number.isFinite(job.pictures) && isTraining(job) ? plural(job.pictures, 'picture') : '');


    /** Which checkpoint a run is for, where that is not the one that is loaded. */
    function otherCheckpoint(job) {
        const model = feed.model();
        if (!isTraining(job) || !job.checkpoint || !model || checkpointName(model.checkpoint) === checkpointName(job.checkpoint)) return '';
        return `for ${checkpointName(job.checkpoint)}`;
    }

    function createQueue() {
        let dragged = null;
        let heldHere = false;
        let busy = false;
        const rows = new Map();

        const heldText = h('p');
        const start = button('Start the queue', () => hold(false), 'primary');
        start.id = 'tl-queue-start';
        const heldBox = h('div.tl-notice.tl-held', {hidden: true, role: 'status'}, heldText, h('div.tl-actions', {}, start));
        const heading = h('h4.tl-small-label', {id: 'tl-queue-title'});
        const holdLink = h('button.tl-link', {type: 'button', id: 'tl-queue-hold', title: 'The next one does not start by itself', onclick: () => hold(true)}, 'Hold');
        const list = h('ol.tl-queue', {'aria-labelledby': 'tl-queue-title'});
        const said = h('p.tl-hidden', {'aria-live': 'polite'});
        const box = h('div.tl-queue-box', {hidden: true}, h('div.tl-queue-head', {}, heading, holdLink), list, said);
        const element = h('div', {}, heldBox, box);

        async function hold(on) {
            if (busy) return;
            busy = true;
            try {
                feed.hold((await post(on ? 'queue/hold' : 'queue/start')).queue_held);
                heldHere = on;
                if (!feed.alive()) await feed.list();
            } catch (error) {
                toast(error.message);
            } finally {
                busy = false;
                present();
            }
        }

        async function move(job, position) {
            const count = feed.queue().length;
            if (position < 0 || position >= count) return;
            if (await jobs.move(job, position)) say(said, `${nameOf(job)} is number ${position + 1} of ${count} now`);
            if (!feed.alive()) await feed.list().catch(() => {});
        }

        /** Keep the keyboard on the button where it was; at an end the other one takes over. */
        function keepFocus(focused) {
            if (!focused || !list.contains(focused)) return;
            const row = [...rows.values()].find(({up, down}) => focused === up || focused === down);
            const control = row && focused.disabled ? (focused === row.up ? row.down : row.up) : focused;
            if (control !== document.activeElement) control.focus();
        }

        function createRow(first) {
            let job = first;
            const number = h('span.tl-queue-number', {'aria-hidden': 'true'});
            const name = h('span.tl-queue-name');
            const what = h('span.tl-queue-what');
            const up = tool('up', 'Earlier', () => move(job, place() - 1));
            const down = tool('down', 'Later', () => move(job, place() + 1));
            const cancel = tool('close', 'Cancel', () => jobs.stop(job));
            const place = () => feed.queue().findIndex(({id}) => id === job.id);
            const row = h('li.tl-queue-row', {draggable: true}, h('span.tl-grip', {'aria-hidden': 'true', title: 'Drag to move'}, icon('grip')), number,
                h('span.tl-queue-text', {}, name, what), up, down, cancel);
            row.addEventListener('dragstart', (event) => {
                dragged = job;
                event.dataTransfer.effectAllowed = 'move';
                event.dataTransfer.setData('text/plain', nameOf(job));
                row.classList.add('tl-dragged');
            });
            row.addEventListener('dragend', () => { dragged = null; mark(null); row.classList.remove('tl-dragged'); present(); });

            function update(next, index, count) {
                job = next;
                setText(number, String(index + 1));
                setText(name, nameOf(job));
                setText(what, whatOf(job));
                row.title = [nameOf(job), whatOf(job)].filter(Boolean).join(': ');
                up.disabled = index === 0;
                down.disabled = index === count - 1;
                for (const [control, word] of [[up, 'earlier'], [down, 'later'], [cancel, '']]) {
                    control.setAttribute('aria-label', word ? `Move ${nameOf(job)} ${word}` : `Cancel ${nameOf(job)}`);
                }
                for (const control of [up, down]) control.hidden = count < 2;
            }

            return {element: row, update, up, down};
        }

        /** Where a dragged job would go: before the row that the pointer is above the middle of. */
        function slotAt(y) {
            const elements = feed.queue().map(({id}) => rows.get(id)).filter(Boolean).map(({element: row}) => row);
            const index = elements.findIndex((row) => { const {top, height} = row.getBoundingClientRect(); return y < top + height / 2; });
            return {index: index < 0 ? elements.length : index, elements};
        }

        function mark(slot) {
            for (const {element: row} of rows.values()) row.classList.remove('tl-drop-before', 'tl-drop-after');
            if (!slot || !slot.elements.length) return;
            if (slot.index < slot.elements.length) slot.elements[slot.index].classList.add('tl-drop-before');
            else slot.elements[slot.elements.length - 1].classList.add('tl-drop-after');
        }

        // The line that shows the place is beside the rows: letting go there, or a little off, counts, too.
        box.addEventListener('dragleave', (event) => { if (!box.contains(event.relatedTarget)) mark(null); });
        box.addEventListener('dragover', (event) => {
            if (!dragged) return;
            event.preventDefault();
            event.stopPropagation();
            event.dataTransfer.dropEffect = 'move';
            mark(slotAt(event.clientY));
        });
        box.addEventListener('drop', (event) => {
            if (!dragged) return;
            event.preventDefault();
            event.stopPropagation();
            const {index} = slotAt(event.clientY);
            const from = feed.queue().findIndex(({id}) => id === dragged.id);
            const to = index > from ? index - 1 : index;
            if (from >= 0 && to !== from) move(dragged, to);
        });

        function present() {
            if (dragged) return;
            const focused = document.activeElement;                                        // Before anything is disabled or moved, which would lose it.
            const waiting = feed.queue();
            const running = feed.current();
            const held = feed.held();
            if (!held) heldHere = false;
            for (const id of [...rows.keys()]) if (!waiting.some((job) => job.id === id)) rows.delete(id);
            waiting.forEach((job, index) => {
                if (!rows.has(job.id)) rows.set(job.id, createRow(job));
                rows.get(job.id).update(job, index, waiting.length);
            });
            const elements = waiting.map(({id}) => rows.get(id).element);
            if (elements.length !== list.childElementCount || elements.some((row, index) => list.children[index] !== row)) {
                list.replaceChildren(...elements);
            }
            keepFocus(focused);
            setText(heading, waiting.length > 1 ? `Up next · ${waiting.length}` : 'Up next');
            const why = heldHere || running ? 'The queue is held: nothing starts by itself.' : 'Nothing starts by itself after a restart.';
            setText(heldText, `${plural(waiting.length, 'job')} ${waiting.length === 1 ? 'is' : 'are'} waiting. ${why}`);
            show(heldBox, held && waiting.length > 0);
            show(holdLink, !held && Boolean(running));
            show(box, waiting.length > 0);
        }

        feed.hear((kind) => { if (kind === 'jobs') present(); });
        return {element, present};
    }

    return {createQueue};
};
