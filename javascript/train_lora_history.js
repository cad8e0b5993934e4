/* The history: every run that is over, what came of it, and what can be done with it. */
(window.trainLora = window.trainLora || {parts: {}}).parts.history = (kit) => {
    'use strict';
    const {h, show, setText, button, icon, tool, figure, duration, feed, isOver, isTraining, isCancelled, isElsewhere, lastRemark, createRemarks, nameOf, stateWord, amountOf, secondsOf, dayAndTime, resumeLabel, factsOf, createSnapshots,
        createCurve, copyButton, copy, toast, openMenu, jobs, lookItems, openLog, openSettings, openTensorBoard, createStorageLink, loraOf, downloadItems, saveMetrics, promptBox, sendToPrompt} = kit;

    const FIRST_ROWS = 8;
    const dateOf = (job) => job.finished_at || job.created_at || 0;
    const COLUMNS = ['Name', 'State', 'Date', 'Steps', 'Loss', 'Time', 'Tag'];

    function createHistory({trainAgain, tryTag, schema}) {
        let opened = '';
        let more = false;
        let cancelledToo = false;
        let kind = 'all';
        const rows = new Map();

        const list = h('ul.tl-runs', {id: 'tl-runs'});
        const head = h('div.tl-run-line.tl-run-heads', {'aria-hidden': 'true'}, ...COLUMNS.map((name) => h(['Loss', 'Time'].includes(name) ? 'span.tl-run-least' : 'span', {}, name)));
        const empty = h('p.tl-muted', {}, 'Runs that are over are kept here, with their settings, log and figures.');
        const moreButton = h('button.tl-link.tl-runs-more', {type: 'button', onclick: () => { more = !more; present(); }});
        const cancelledButton = h('button.tl-link.tl-runs-more', {type: 'button', onclick: () => { cancelledToo = !cancelledToo; present(); }});
        const storage = createStorageLink();
        const kinds = h('div.tl-segments', {role: 'radiogroup', 'aria-label': 'Show'}, ...[['all', 'All'], ['training', 'LoRAs'], ['captioning', 'Captions']].map(([value, label]) =>
            h('label.tl-segment', {}, h('input', {type: 'radio', name: 'tl-history-kind', value, checked: value === kind, onchange: () => { kind = value; present(); }}), label)));
        const element = h('section.tl-card.tl-history', {'aria-label': 'History'}, h('header.tl-card-head', {}, h('h3.tl-title', {}, 'History'), storage.element, h('span.tl-spring'), kinds),
            empty, head, list, h('div.tl-runs-foot', {}, moreButton, cancelledButton));

        function createRow(first) {
            let job = first;
            let panel = null;
            const name = h('span.tl-run-name');
            const chevron = icon('right');
            const opener = h('button.tl-run-open', {type: 'button', 'aria-expanded': 'false', onclick: () => open(opened === job.id ? '' : job.id)}, chevron, name);
            const state = h('span.tl-state');
            const cells = {date: h('span.tl-run-date'), amount: h('span'), loss: h('span'), took: h('span')};
            const tag = h('button.tl-run-tag', {type: 'button', onclick: () => copy(job.lora_tag).then(() => toast(`Copied ${job.lora_tag}`))}, h('code'), icon('copy'));
            const act = button('', () => jobs.goOn(job));
            const dots = tool('dots', 'More', () => openMenu(dots, menuOf(job), `Actions for ${nameOf(job)}`), {'aria-haspopup': 'menu'});
            const line = h('div.tl-run-line', {onclick: (event) => { if (!event.target.closest('button, a, input')) open(opened === job.id ? '' : job.id); }}, opener, state, cells.date,
                labelled('Steps', cells.amount), labelled('Loss', cells.loss, '.tl-run-least'), labelled('Took', cells.took, '.tl-run-least'), h('span.tl-run-tag-cell', {}, tag), h('span.tl-run-act', {}, act, dots));
            const body = h('div.tl-run-body', {hidden: true, id: `tl-run-${first.id}`});
            opener.setAttribute('aria-controls', body.id);
            const row = h('li.tl-run', {'data-job': first.id}, line, body);

            function update(next, isOpen) {
                job = next;
                setText(name, nameOf(job));
                opener.title = nameOf(job);
                setText(state, stateWord(job));
                state.className = `tl-state tl-is-${isElsewhere(job) ? 'elsewhere' : job.state}`;
                row.classList.toggle('tl-run-cancelled', isCancelled(job));
                state.title = job.error || job.message || '';
                setText(cells.date, dayAndTime(dateOf(job)));
                cells.date.title = new Date(dateOf(job) * 1000).toLocaleString();
                setText(cells.amount, amountOf(job));
                setText(cells.loss, isTraining(job) && Number.isFinite(job.loss_average ?? job.loss) ? figure(job.loss_average ?? job.loss) : '');
                setText(cells.took, duration(secondsOf(job)) || '–');
                show(tag, Boolean(job.lora_tag));
                setText(tag.firstChild, job.lora_tag || '');
                tag.title = `Copy ${job.lora_tag || ''}`;
                tag.setAttribute('aria-label', tag.title);
                const label = job.state === 'finished' ? null : resumeLabel(job);
                setText(act, label ? shortLabel(job, label) : '');
                act.title = label || '';
                act.setAttribute('aria-label', `${label || ''}: ${nameOf(job)}`);
                show(act, Boolean(label));
                dots.setAttribute('aria-label', `More for ${nameOf(job)}`);
                opener.setAttribute('aria-expanded', String(isOpen));
                row.classList.toggle('tl-run-opened', isOpen);
                if (isOpen && !panel) body.append((panel = createPanel()).element);
                if (isOpen) panel.update(job);
                else if (panel) { body.replaceChildren(); panel = null; }
                show(body, isOpen);
            }

            return {element: row, update, focus: () => opener.focus()};
        }

        const labelled = (word, cell, more = '') => h(`span.tl-run-cell${more}`, {}, h('span.tl-hidden', {}, `${word} `), cell);
        const shortLabel = (job, label) => (/^Resume at step/.test(label) ? 'Resume' : label);

        function menuOf(job) {
            const label = resumeLabel(job);
            const trigger = (job.config || {}).trigger_word;
            return [label ? {label, act: () => jobs.goOn(job)} : null,
                isTraining(job) ? {label: 'Train again with …', act: () => trainAgain(job)} : null,
                job.lora_tag && promptBox() ? {label: 'Send to txt2img', act: () => sendToPrompt(job.lora_tag, trigger)} : null,
                job.lora_tag && tryTag.ready() ? {label: 'Try it', act: () => tryTag(job.lora_tag, trigger)} : null,
                ...lookItems(job, schema())].filter(Boolean).concat([null, {label: 'Delete …', danger: true, act: () => jobs.remove(job)}]);
        }

        /** What an opened row shows: words, facts, the curve, and every action as a button. */
        function createPanel() {
            let job = null;
            const curve = createCurve();
            const said = h('p.tl-run-said');
            const facts = h('dl.tl-run-facts');
            const notes = createRemarks();
            const failed = h('ul.tl-list');
            const snapshots = createSnapshots({tryTag});
            const file = h('p.tl-path.tl-wrap');
            const on = button('', () => jobs.goOn(job), 'primary');
            const again = button('Train again with …', () => trainAgain(job));
            const tagLine = h('div.tl-tag-line', {}, h('code.tl-tag.tl-plain'), copyButton(() => job.lora_tag));
            const metrics = button('metrics.csv', () => saveMetrics(job));
            const board = button('TensorBoard', () => openTensorBoard(job));
            const save = button('Download', () => openMenu(save, downloadItems(job, loraOf(job)), 'Download'));
            save.setAttribute('aria-haspopup', 'menu');
            const actions = h('div.tl-actions.tl-run-actions', {}, on, again, save, button('Settings', () => openSettings(job, schema())), button('Log', () => openLog(job)), metrics, board,
                h('span.tl-spring'), button('Delete', () => jobs.remove(job), 'quiet-danger'));
            const left = h('div.tl-run-curve', {}, curve.element);
            const element = h('div.tl-run-panel', {}, h('div.tl-run-columns', {}, left, h('div.tl-run-side', {}, said, tagLine, facts, notes.element, failed, snapshots.element, file)), actions);

            function update(next) {
                job = next;
                const training = isTraining(job);
                element.classList.toggle('tl-run-plain', !training);
                for (const part of [left, again, metrics]) show(part, training);
                show(save, Boolean(loraOf(job)));
                if (training) curve.show(job);
                setText(said, job.error || (isElsewhere(job) && lastRemark(job)) || (training && job.step && job.state !== 'interrupted' ? '' : job.message) || '');
                said.classList.toggle('tl-run-bad', job.state === 'failed');
                said.classList.toggle('tl-run-elsewhere', isElsewhere(job));
                show(said, Boolean(said.textContent));
                facts.replaceChildren(...factsOf(job).map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {title: value}, value))));
                notes.present(job);
                failed.replaceChildren(...(job.failed || []).map(({filename, reason}) => h('li', {}, h('strong', {}, filename), ` ${reason}`)));
                show(failed, (job.failed || []).length > 0);
                snapshots.present(job);
                setText(file, job.output_file || '');
                show(file, Boolean(job.output_file));
                setText(tagLine.firstChild, job.lora_tag || '');
                show(tagLine, Boolean(job.lora_tag));
                const label = resumeLabel(job);
                setText(on, label || '');
                show(on, Boolean(label));
                on.classList.toggle('tl-primary', job.state !== 'finished');
                show(board, training && Boolean(job.tensorboard_dir));
            }

            return {element, update};
        }

        function open(id) {
            opened = id;
            present();
        }

        function present() {
            const over = feed.over();
            const mixed = over.some(isTraining) && over.some((job) => !isTraining(job));
            if (!mixed && kind !== 'all') kind = 'all';
            const ofKind = over.filter((job) => kind === 'all' || isTraining(job) === (kind === 'training')).sort((a, b) => dateOf(b) - dateOf(a) || Number(b.id) - Number(a.id));
            const cancelled = ofKind.filter(isCancelled).length;
            const wanted = cancelledToo ? ofKind : ofKind.filter((job) => !isCancelled(job));
            const shown = more ? wanted : wanted.filter((job, index) => index < FIRST_ROWS || job.id === opened);
            for (const id of [...rows.keys()]) if (!wanted.some((job) => job.id === id)) rows.delete(id);
            for (const job of shown) {
                if (!rows.has(job.id)) rows.set(job.id, createRow(job));
                rows.get(job.id).update(job, job.id === opened);
            }
            const elements = shown.map(({id}) => rows.get(id).element);
            if (elements.length !== list.childElementCount || elements.some((row, index) => list.children[index] !== row)) {
                const focused = document.activeElement;
                list.replaceChildren(...elements);
                if (focused && list.contains(focused)) focused.focus();
            }
            show(kinds, mixed);
            storage.present(over.length);
            for (const input of kinds.querySelectorAll('input')) input.checked = input.value === kind;
            show(empty, !over.length);
            show(head, shown.length > 0);
            setText(moreButton, more ? 'Show fewer' : `Show all ${wanted.length}`);
            show(moreButton, wanted.length > FIRST_ROWS);
            setText(cancelledButton, cancelledToo ? 'Hide cancelled' : `Show ${cancelled} cancelled`);
            show(cancelledButton, cancelled > 0);
        }

        feed.hear((what, value) => { if (what === 'jobs' || (what === 'job' && isOver(value))) present(); });
        return {element, present, open};
    }

    return {createHistory};
};
