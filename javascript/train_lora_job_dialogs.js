/* What can be looked at of a job, each in a dialog: its settings, its log as it grows, its figures in TensorBoard; and what all jobs take of the disk. */
(window.trainLora = window.trainLora || {parts: {}}).parts.job_dialogs = (kit) => {
    'use strict';
    const {h, show, setText, button, url, encode, get, post, plural, fileSize, ask, openDialog, feed, isOver, nameOf, isTraining, loraOf, downloadItems, copyButton, toast, link} = kit;

    const LOG_EVERY_MS = 1000;
    const LONGEST_LOG = 400_000;

    /** The log, to its end; one that still grows is read on, and stays at its end unless somebody scrolled up. */
    function openLog(job) {
        let since = 0;
        let timer = 0;
        let open = true;
        const text = h('pre.tl-log', {tabIndex: 0, 'aria-label': `Log of ${nameOf(job)}`});
        const state = h('span.tl-muted', {role: 'status'}, 'Reading …');
        const dialog = openDialog({title: `Log of ${nameOf(job)}`, className: 'tl-wide-dialog', body: [text], onClose: () => { open = false; clearTimeout(timer); },
            foot: [state, h('span.tl-spring'), copyButton(() => text.textContent, {label: 'Copy all'}), button('Close', () => dialog.close())]});

        async function read() {
            clearTimeout(timer);
            try {
                const answer = await get(`jobs/${encode(job.id)}/log?since=${since}`);
                if (!open) return;
                since = answer.next;
                append(answer.text);
                const now = feed.job(job.id) || job;
                setText(state, isOver(now) ? (text.textContent ? '' : 'Nothing was written down.') : 'Follows as it grows');
                if (!isOver(now) || answer.text) timer = setTimeout(() => link.whenBack(read), LOG_EVERY_MS);
            } catch (error) {
                setText(state, error.message);
                if (error.offline && open) timer = setTimeout(() => link.whenBack(read), LOG_EVERY_MS);
            }
        }

        function append(more) {
            if (!more) return;
            const atEnd = text.scrollHeight - text.scrollTop - text.clientHeight < 24;
            const whole = text.textContent + more;
            if (whole.length > LONGEST_LOG) text.textContent = whole.slice(whole.indexOf('\n', whole.length - LONGEST_LOG) + 1);
            else text.append(more);
            if (atEnd) text.scrollTop = text.scrollHeight;
        }

        text.focus({preventScroll: true});
        read();
    }

    /** The settings of a job, the chief ones and those that were chosen first; `schema` has a title and default for each. */
    function openSettings(job, schema) {
        const entries = Object.entries(job.config || {}).map(([name, value]) => ({name, value, ...(schema.get(name) || {title: name})}));
        const chosen = entries.filter(({value, group, default: otherwise}) => group === 'main' || String(value) !== String(otherwise ?? ''));
        const rest = entries.filter((entry) => !chosen.includes(entry));
        const steps = Number((job.config || {}).max_train_steps) > 0;
        const unused = (name) => steps && name === 'epochs';
        const wordsOf = (value) => (value === true ? 'on' : value === false ? 'off' : value === '' || value === null ? '–' : typeof value === 'object' ? JSON.stringify(value) : String(value));
        const listOf = (list) => h('dl.tl-setting-list', {}, ...list.map(({title, name, value, unit}) =>
            h('div', {}, h('dt', {title: name}, title || name), h('dd', unused(name) ? {title: `The run is set to steps; Epochs says ${value}`} : {}, unused(name) ? 'not used' : [wordsOf(value), value === '' ? '' : unit].filter(Boolean).join(' ')))));
        const yaml = () => `${entries.map(({name, value}) => `${name}: ${JSON.stringify(value)}`).join('\n')}\n`;
        const dialog = openDialog({title: `Settings of ${nameOf(job)}`, className: 'tl-wide-dialog', body: [listOf(chosen),
            rest.length ? h('details.tl-more', {}, h('summary', {}, h('span', {}, `Unchanged (${rest.length})`)), h('div.tl-more-body', {}, listOf(rest))) : null]
            .filter(Boolean), foot: [h('span.tl-spring'), copyButton(yaml, {label: 'Copy as YAML', title: 'For the command line, or another machine'}), button('Close', () => dialog.close())]});
    }

    // --- The disk -----------------------------------------------------------------------------------------------------

    /** What can be cleared: what it is called, what goes and what stays with it. `of` counts it in words. */
    const STORES = [
        {what: 'states', title: 'Training states', help: 'What finished runs need to be trained on.', verb: 'Remove', of: ({count}) => `of ${plural(count, 'finished run')}`,
            goes: ({count}) => `The training ${count === 1 ? 'state of the finished run goes: it' : `states of ${count} finished runs go: they`} cannot be trained on any more.`,
            stays: 'Their LoRAs, settings, logs and figures stay, and so does every run that has not finished.'},
        {what: 'trash', title: 'Trash', help: 'Deleted pictures, and what an undo had to overwrite.', verb: 'Empty', of: ({count}) => plural(count, 'file'),
            goes: ({count}) => `${plural(count, 'file')} in the trash of your data sets ${count === 1 ? 'goes' : 'go'}: deleting them cannot be undone any more.`,
            stays: 'The pictures and captions in your data sets stay.'},
        {what: 'models', title: 'Captioner models', help: 'Downloaded for automatic captions.', verb: 'Remove', of: ({count}) => plural(count, 'file'),
            goes: ({count}) => `${plural(count, 'downloaded file')} ${count === 1 ? 'goes' : 'go'}, and will be downloaded again when you caption with them.`,
            stays: 'Checkpoints, LoRAs and captions stay.'}];

    const finishedWord = (count) => plural(count, 'finished job');

    async function clearStore(body, dialog, words) {
        const yes = await ask({title: words.title, text: words.goes, list: [words.stays], answers: [{label: words.verb, kind: 'danger', value: true}]});
        if (!yes) return null;
        try {
            const done = await post('storage/clear', body);
            toast([`${fileSize(done.bytes)} are free again.`, ...done.problems].join(' '));
            await feed.list();
        } catch (error) {
            toast(error.message);
        }
        return dialog.read();
    }

    /** What everything takes of the disk, with a button for what can go. */
    function openStorage({onChange = () => {}} = {}) {
        const list = h('ul.tl-storage');
        const free = h('span.tl-muted', {role: 'status'}, 'Measuring …');
        const keep = h('input.tl-input', {id: 'tl-storage-keep', type: 'number', min: 0, step: 1, value: '20'});
        const opened = openDialog({title: 'Storage', className: 'tl-storage-dialog', onClose: onChange, body: [list],
            foot: [free, h('span.tl-spring'), button('Close', () => opened.close(), 'primary')]});
        const dialog = {read};

        function row({title, help, amount, size, control}) {
            return h('li.tl-storage-row', {}, h('div.tl-storage-text', {}, h('strong', {}, title), h('span.tl-help', {}, help)),
                h('span.tl-storage-size', {}, h('strong', {}, size), h('span.tl-help', {}, amount)), control);
        }

        function jobsRow(jobs) {
            const clear = button('Delete …', () => {
                const kept = Math.max(0, Math.floor(Number(keep.value) || 0));
                const going = Math.max(0, jobs.finished - kept);
                if (!going) { toast(`There are only ${finishedWord(jobs.finished)}; none is older than the newest ${kept}.`); return; }
                clearStore({what: 'jobs', keep: kept}, dialog, {title: `Delete ${finishedWord(going)}?`, verb: 'Delete',
                    goes: `The ${going === 1 ? 'oldest goes' : `oldest ${going} go`} with settings, log, figures and training state.`,
                    stays: 'The LoRA files stay, and so does every run that has not finished.'});
            });
            clear.disabled = !jobs.finished;
            return row({title: 'Jobs', help: 'Settings, logs, figures and training states of all runs.', amount: plural(jobs.count, 'job'), size: sizeOf(jobs),
                control: h('span.tl-storage-act', {}, h('label.tl-help', {htmlFor: 'tl-storage-keep'}, 'Keep the newest'), keep, clear)});
        }

        function storeRow(store, {count, bytes}) {
            const clear = button(`${store.verb} …`, () => clearStore({what: store.what}, dialog, {title: `${store.verb} ${fileSize(bytes)}?`, verb: store.verb,
                goes: store.goes({count}), stays: store.stays}));
            clear.disabled = !count;
            return row({title: store.title, help: store.help, amount: store.of({count}), size: sizeOf({bytes}), control: h('span.tl-storage-act', {}, clear)});
        }

        async function read() {
            try {
                const report = await get('storage');
                list.replaceChildren(jobsRow(report.jobs), ...STORES.map((store) => storeRow(store, report[store.what])));
                setText(free, `${fileSize(report.free_bytes)} free on this disk`);
            } catch (error) {
                setText(free, error.message);
            }
        }

        read();
    }

    const sizeOf = ({bytes: size}) => (size ? fileSize(size) : '–');

    /** How much the jobs take, as a link to the dialog; asked for again when a job has ended. */
    function createStorageLink() {
        let seen = -1;
        const element = h('button.tl-link.tl-storage-link', {type: 'button', title: 'What takes how much of the disk, and can go', onclick: () => openStorage({onChange: read})}, 'Storage …');
        async function read() {
            const report = await get('storage').catch(() => null);
            if (report) setText(element, report.jobs.bytes ? `${fileSize(report.jobs.bytes)} · Storage …` : 'Storage …');
        }
        function present(count) {
            if (count === seen) return;
            seen = count;
            read();
        }
        return {element, present};
    }

    function openTensorBoard(job) {
        const folder = job.tensorboard_dir;
        const command = `tensorboard --logdir "${folder}"`;
        const line = (text) => h('div.tl-tag-line', {}, h('code.tl-tag.tl-plain', {}, text), copyButton(text));
        const running = h('p', {hidden: true});
        get('tensorboard').then(({url: address}) => {
            if (address) running.replaceChildren('One runs here already: ', h('a.tl-link', {href: address, target: '_blank', rel: 'noopener'}, `Open ${address}`), '. It shows what its own log folder holds.');
            show(running, Boolean(address));
        }).catch(() => {});
        const dialog = openDialog({title: 'TensorBoard', className: 'tl-command-dialog', body: [
            h('p', {}, 'The figures of this run are in this folder:'), line(folder), h('p', {}, 'To see them, run this in a terminal and open the address it prints:'), line(command), running],
        foot: [button('Close', () => dialog.close(), 'primary')]});
    }

    const saveMetrics = (job) => h('a', {href: url(`jobs/${encode(job.id)}/metrics.csv`).href, download: `${nameOf(job)}.csv`}).click();

    /** The entries of a job's menu that only look. */
    const lookItems = (job, schema) => [
        {label: 'Settings', act: () => openSettings(job, schema)},
        {label: 'Log', act: () => openLog(job)},
        ...(loraOf(job) ? downloadItems(job, loraOf(job)) : []),
        isTraining(job) ? {label: 'Save metrics.csv', act: () => saveMetrics(job)} : null,
        isTraining(job) && job.tensorboard_dir ? {label: 'TensorBoard …', act: () => openTensorBoard(job)} : null].filter(Boolean);

    return {openLog, openSettings, openTensorBoard, openStorage, createStorageLink, saveMetrics, lookItems};
};
