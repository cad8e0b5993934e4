/* What can be looked at of a job, each in a dialog: its settings, its log as it grows, its figures in TensorBoard. */
(window.trainLora = window.trainLora || {parts: {}}).parts.job_dialogs = (kit) => {
    'use strict';
    const {h, show, setText, button, url, encode, get, openDialog, feed, isOver, nameOf, isTraining, copyButton, toast, link} = kit;

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

    function openTensorBoard(job) {
        const folder = job.tensorboard_dir;
        const command = `tensorboard --logdir "${folder}"`;
        const line = (text) => h('div.tl-tag-line', {}, h('code.tl-tag.tl-plain', {}, text), copyButton(text));
        const dialog = openDialog({title: 'TensorBoard', className: 'tl-command-dialog', body: [
            h('p', {}, 'The figures of this run are in this folder:'), line(folder), h('p', {}, 'To see them, run this in a terminal and open the address it prints:'), line(command)],
        foot: [button('Close', () => dialog.close(), 'primary')]});
    }

    const saveMetrics = (job) => h('a', {href: url(`jobs/${encode(job.id)}/metrics.csv`).href, download: `${nameOf(job)}.csv`}).click();

    /** The entries of a job's menu that only look. */
    const lookItems = (job, schema) => [
        {label: 'Settings', act: () => openSettings(job, schema)},
        {label: 'Log', act: () => openLog(job)},
        isTraining(job) ? {label: 'Save metrics.csv', act: () => saveMetrics(job)} : null,
        isTraining(job) && job.tensorboard_dir ? {label: 'TensorBoard …', act: () => openTensorBoard(job)} : null].filter(Boolean);

    return {openLog, openSettings, openTensorBoard, saveMetrics, lookItems};
};
