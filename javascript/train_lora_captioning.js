/* Automatic captions: choose a captioner, see what it needs, start it, and follow it while its words appear in the grid. */
(window.trainLora = window.trainLora || {parts: {}}).parts.captioning = (kit) => {
    'use strict';
    const {h, show, setText, button, iconButton, tool, plural, fileSize, duration, get, post, send, link, encode, openDialog, createScope, createField, toast, remember,
        remembered, feed} = kit;

    const OVER = ['finished', 'stopped', 'failed', 'interrupted'];
    const ENDS = {finished: 'Captions written', stopped: 'Stopped', failed: 'Captioning failed', interrupted: 'Captioning was interrupted'};
    const READY_MS = 300;
    const MOST_REMEMBERED = 50;

    const COMMON = [
        {name: 'trigger_word', title: 'Trigger word', help: 'Put in front of every caption.', type: 'text', default: ''},
        {name: 'prefix', title: 'Words in front', help: 'After the trigger word.', type: 'text', default: ''},
        {name: 'suffix', title: 'Words at the end', help: '', type: 'text', default: ''},
        {name: 'exclude', title: 'Leave out', help: 'Words or tags that are never written, with commas between.', type: 'text', default: ''},
        {name: 'separator', title: 'Between tags', help: '', type: 'text', default: ', '},
        {name: 'underscores_to_spaces', title: 'Spaces for underscores', help: 'long_hair becomes long hair.', type: 'bool', default: true},
    ];
    const COMMON_NAMES = COMMON.map(({name}) => name);


    // --- The dialog ---------------------------------------------------------------------------------------------------

    /** Choose and start, with `captioner` chosen if one is named. `started(id)` is called when a captioner has begun. */
    async function openCaptioning({captioner: wanted = '', dataset, grid, triggerWord, started}) {
        const captioners = await get('captioners');
        const kept = remembered().captioning || {};
        let current = captioners.find(({name}) => name === wanted) || captioners.find(({name}) => name === kept.captioner) || captioners[0];
        let readiness = null;
        let timer = 0;
        let asked = 0;
        const values = {...kept.options};
        const fields = new Map();

        const scope = createScope({dataset, grid}, () => presentCount());
        const choices = h('div.tl-captioners', {role: 'radiogroup', 'aria-label': 'Captioner'}, ...captioners.map(createChoice));
        const overwrite = h('input.tl-check', {id: 'tl-caption-overwrite', type: 'checkbox', onchange: () => presentCount()});
        const overwriteHelp = h('p.tl-help', {id: 'tl-caption-overwrite-help'});
        overwrite.setAttribute('aria-describedby', 'tl-caption-overwrite-help');
        const own = h('div.tl-fields');
        const common = h('div.tl-fields');
        const commonBox = h('details.tl-more', {}, h('summary', {}, h('span', {}, 'Words around it')), h('div.tl-more-body', {}, common));
        const lists = h('div.tl-labels');
        const needs = h('div.tl-notice', {hidden: true, role: 'status'});
        const error = h('p.tl-error', {role: 'alert', hidden: true});
        const go = button('Start', () => start(), 'primary');
        const dialog = openDialog({title: 'Caption automatically', className: 'tl-captioning', onClose: () => clearTimeout(timer),
            body: [h('div.tl-captioning-what', {}, choices), h('div.tl-captioning-how', {}, needs, own, lists, commonBox)],
            foot: [h('div.tl-captioning-for', {}, scope.element, h('div.tl-field', {}, h('div.tl-label-line', {}, overwrite,
                h('label.tl-label', {htmlFor: 'tl-caption-overwrite'}, 'Overwrite captions I wrote')), overwriteHelp), error),
            button('Cancel', () => dialog.close()), go]});

        function createChoice(captioner) {
            const {name, title, help} = captioner;
            return h('label.tl-captioner', {},
                h('input', {type: 'radio', name: 'tl-captioner', value: name, checked: captioner === current, onchange: () => choose(captioner)}),
                h('span.tl-preset-title', {}, title), h('span.tl-help', {}, help), h('span.tl-captioner-state', {}, stateOf(captioner)));
        }

        const key = (name) => (COMMON_NAMES.includes(name) ? name : `${current.name}.${name}`);
        const valueOf = ({name, default: otherwise}) => values[key(name)] ?? (name === 'trigger_word' && triggerWord ? triggerWord : otherwise);

        function choose(captioner) {
            current = captioner;
            const options = captioner.options || [];
            fields.clear();
            const around = COMMON.map((entry) => options.find(({name}) => name === entry.name) || entry);
            own.replaceChildren(...options.filter(({name}) => !COMMON_NAMES.includes(name)).map(fieldOf));
            common.replaceChildren(...around.map(fieldOf));
            presentFields();
            readiness = captioner;
            presentNeeds();
            askSoon(0);
            presentLabels();
        }

        /** Options that only matter with another one's value, as the name of a model of one's own. */
        function presentFields() {
            for (const {name, only_if: condition} of current.options || []) {
                if (!condition || !fields.has(name)) continue;
                const fits = Object.entries(condition).every(([other, wanted]) => {
                    const entry = current.options.find((option) => option.name === other);
                    return !entry || [].concat(wanted).map(String).includes(String(valueOf(entry)));
                });
                show(fields.get(name).element, fits);
            }
        }

        function fieldOf(entry) {
            const field = createField(entry, {idPrefix: 'tl-captioning', onInput: (value) => set(entry, value, field), onReset: () => set(entry, undefined, field)});
            field.setValue(valueOf(entry));
            field.setChanged(String(valueOf(entry)) !== String(entry.default), entry.default);
            fields.set(entry.name, field);
            return field.element;
        }

        function set(entry, value, field) {
            if (value === undefined) values[key(entry.name)] = entry.default;
            else values[key(entry.name)] = value;
            if (value === undefined) field.setValue(entry.default);
            field.setChanged(String(valueOf(entry)) !== String(entry.default), entry.default);
            presentFields();
            presentList();
            askSoon();
        }

        function options() {
            const entries = [...COMMON.filter(({name}) => !(current.options || []).some((entry) => entry.name === name)), ...(current.options || [])];
            return Object.fromEntries(entries.map((entry) => [entry.name, typed(entry, valueOf(entry))]));
        }

        function askSoon(delay = READY_MS) {
            clearTimeout(timer);
            timer = setTimeout(() => link.whenBack(askReadiness), delay);
        }

        async function askReadiness() {
            const number = asked += 1;
            try {
                const answer = await post(`captioners/${encode(current.name)}/readiness`, {options: options()});
                if (number === asked) readiness = {...readiness, ...answer};
                show(error, false);
            } catch (problem) {
                if (number === asked) fail(problem);
            }
            if (number === asked) presentNeeds();
        }

        const mustDownload = () => Boolean(!readiness.ready && readiness.downloads);
        const blockedNow = () => !readiness.ready && !readiness.downloads;

        function presentNeeds() {
            const state = choices.querySelector('.tl-captioner:has(:checked) .tl-captioner-state');
            if (state) setText(state, stateOf(readiness));
            const blocked = blockedNow();
            needs.classList.toggle('tl-warn', blocked);
            needs.replaceChildren(...(blocked ? [h('p', {}, readiness.needs || 'This captioner cannot be used here.')] : !mustDownload() ? [] : [
                h('p', {}, h('strong', {}, `Downloads ${sizeOf(readiness)} first, once. `), readiness.downloads)]));
            show(needs, blocked || mustDownload());
            presentCount();
        }

        /** How many pictures it will be, and whether a download must be agreed to first. */
        function presentCount() {
            const names = scope.filenames();
            const wanted = overwrite.checked ? names : names.filter((filename) => !dataset.picture(filename).caption || dataset.picture(filename).automatic);
            const kept = names.length - wanted.length;
            setText(overwriteHelp, overwrite.checked ? 'Every caption of these pictures is written anew; Undo brings the old ones back.'
                : kept ? `${plural(kept, 'caption')} you wrote ${kept === 1 ? 'is' : 'are'} kept.` : 'Captions you wrote are kept.');
            go.disabled = blockedNow() || !wanted.length;
            const what = wanted.length ? `Caption ${plural(wanted.length, 'picture')}` : 'Nothing to caption';
            setText(go, mustDownload() && wanted.length ? `Download ${sizeOf(readiness)} and caption ${plural(wanted.length, 'picture')}` : what);
        }

        function fail(problem) {
            setText(error, problem.message);
            show(error, true);
        }

        async function presentLabels() {
            const mine = current;
            lists.replaceChildren();
            if (!/label/i.test(mine.name)) return;
            try {
                const all = await get('labels');
                if (mine !== current) return;
                lists.replaceChildren(h('h4.tl-group-label', {}, 'Label lists'), ...all.map(createLabels));
                presentList();
            } catch (problem) {
                fail(problem);
            }
        }

        /** Of the lists, only the one that will be used; what was changed in the others is kept, and saved with it. */
        function presentList() {
            const read = (name) => String(valueOf((current.options || []).find((entry) => entry.name === name) || {name, default: ''}));
            const used = read('labels') || (read('model') === 'demo' ? 'shapes' : 'default');
            for (const list of lists.querySelectorAll('.tl-label-list')) show(list, list.listName === used);
        }

        async function start() {
            go.disabled = true;
            show(error, false);
            remember({captioning: {captioner: current.name, options: values}});
            try {
                await Promise.all([...lists.querySelectorAll('.tl-label-list')].map((list) => list.save && list.save()));
                const body = {captioner: current.name, overwrite: overwrite.checked, options: options(), ...(scope.all() ? {} : {filenames: scope.filenames()})};
                const {id} = await post(`${dataset.at()}/autocaption`, body);
                dialog.close();
                started(id);
            } catch (problem) {
                fail(problem.code === 'busy' ? {message: `Something else is running: ${problem.message}`} : problem);
                go.disabled = false;
            }
        }

        choose(current);
    }

    /** In short; the whole sentence stands beside the options. */
    const stateOf = (readiness) => (readiness.ready ? 'Ready' : readiness.downloads ? `Downloads ${sizeOf(readiness)} once` : 'Not available here yet');

    const sizeOf = ({download_bytes: size}) => (size > 0 ? fileSize(size) : 'a model of unknown size');

    /** What was typed, as a number where one is meant; the server says what is wrong with anything else. */
    function typed({type}, value) {
        const numeric = ['int', 'float'].includes(type) && typeof value === 'string' && value.trim() !== '' && Number.isFinite(Number(value));
        return numeric ? Number(value) : value;
    }


    // --- Lists of words -----------------------------------------------------------------------------------------------

    /** One list of labels, its groups as text boxes; saved when one is left, and before a captioner begins. */
    function createLabels({name, title, editable, path, groups, changed}) {
        const state = h('span.tl-muted', {role: 'status'}, changed ? 'Changed by you' : '');
        const restore = show(iconButton('Restore the delivered list', 'Throw the changes to this list away', () => reset()), Boolean(changed));
        const boxes = new Map();
        const box = h('details.tl-label-list.tl-more', {}, h('summary', {}, h('span', {}, title), state));
        let dirty = false;

        function fill(entries) {
            boxes.clear();
            const rows = entries.map((group, index) => {
                const id = `tl-labels-${name}-${index}`;
                const text = h('textarea.tl-input.tl-label-text', {id, value: group.text, rows: 4, spellcheck: false, readOnly: !editable,
                    oninput: () => { dirty = true; setText(state, 'Not saved yet'); }, onblur: () => save().catch(() => {})});
                boxes.set(group.name, text);
                return h('div.tl-field', {}, h('label.tl-label', {htmlFor: id}, group.name), text);
            });
            body.replaceChildren(h('p.tl-help', {}, 'One label a line; the best of each group are written.'), h('div.tl-fields.tl-label-groups', {}, ...rows),
                h('div.tl-actions', {}, editable ? restore : null, path ? h('span.tl-path', {title: path}, path) : null));
        }

        async function save() {
            if (!dirty) return;
            setText(state, 'Saving …');
            try {
                await send('PUT', `labels/${encode(name)}`, {groups: Object.fromEntries([...boxes].map(([group, text]) => [group, text.value]))});
                dirty = false;
                setText(state, 'Saved');
                show(restore, true);
            } catch (error) {
                setText(state, `Not saved: ${error.message}`);
                throw error;
            }
        }

        async function reset() {
            try {
                await send('DELETE', `labels/${encode(name)}`);
                const fresh = (await get('labels')).find((list) => list.name === name);
                dirty = false;
                fill(fresh.groups);
                setText(state, 'As delivered');
                show(restore, false);
            } catch (error) {
                setText(state, error.message);
            }
        }

        const body = h('div.tl-more-body');
        box.append(body);
        box.save = save;
        box.listName = name;
        fill(groups);
        return box;
    }


    // --- Progress -----------------------------------------------------------------------------------------------------

    /** Follow a captioner: how far it is, what failed, stop; or offer to go on with one that was interrupted. `seen()` is called when captions may have changed, `ended(job)` once at the end. */
    function createCaptioningBar({seen, ended, openPicture, undo, goOn}) {
        let job = null;
        let offered = null;
        const title = h('strong.tl-captioning-title');
        const text = h('span.tl-muted');
        const fill = h('div.tl-bar-fill');
        const bar = h('div.tl-bar.tl-thin', {role: 'progressbar', 'aria-valuemin': '0', 'aria-valuemax': '100', 'aria-label': 'Captions written'}, fill);
        const stop = button('Stop', () => halt());
        const back = button('Undo', () => { dismiss(); undo(); });
        const on = button('Go on', () => { const {config} = offered; dismiss(); goOn(config); });
        const failedList = h('ul.tl-list');
        const failedTitle = h('span');
        const failed = h('details.tl-failed', {hidden: true}, h('summary', {}, failedTitle), failedList);
        const close = tool('close', 'Hide', () => dismiss());
        const element = h('div.tl-captioning-bar', {hidden: true, role: 'group', 'aria-label': 'Automatic captions'},
            h('div.tl-captioning-line', {}, title, text, h('span.tl-spring'), back, on, stop, close), bar, failed);

        const running = () => Boolean(job) && !OVER.includes(job.state);

        function dismiss() {
            if (offered) remember({interrupted: [...(remembered().interrupted || []), offered.id].slice(-MOST_REMEMBERED)});
            [job, offered] = [null, null];
            show(element, false);
        }

        /** Follow one that has just begun, or waits for its turn. */
        async function follow(id) {
            try {
                await feed.fetch(id);
                present(feed.job(id));
            } catch (error) {
                setText(text, error.message);
            }
        }

        /** One that works, wherever it was started, is followed until it ends. */
        feed.hear((kind, value) => {
            if (kind !== 'jobs' && kind !== 'job' && kind !== 'ended') return;
            const current = feed.current();
            if (current && current.kind === 'captioning' && !(job && job.id === current.id) && !running()) present(current);
            const mine = job && (kind === 'ended' && value.id === job.id ? value : feed.job(job.id));
            if (mine && mine !== job && running()) present(mine);
        });

        /** Say that a captioner was interrupted, until that is dismissed or another begins. */
        function offer(interrupted) {
            if (job) return;
            offered = interrupted;
            setText(title, offered.total > 0 ? `Captioning was interrupted: ${offered.done} of ${offered.total} done.` : 'Captioning was interrupted.');
            setText(text, '');
            for (const part of [back, stop, failed]) show(part, false);
            for (const part of [on, close, element]) show(part, true);
            element.classList.add('tl-over');
        }

        function present(next) {
            const was = running() || !job;
            const more = !job || job.done !== next.done || job.state !== next.state;
            if (offered) dismiss();
            job = next;
            const over = !running();
            const now = job.state === 'queued' ? 'Captions wait for their turn' : job.state === 'paused' ? 'Paused' : job.done ? 'Writing captions' : job.message || 'Preparing';
            setText(title, over ? ENDS[job.state] : job.stopping ? 'Stopping after this picture …' : now);
            const left = !over && duration(job.eta_seconds);
            const count = over ? `${job.written || 0} written` : `${job.done} of ${job.total}`;
            setText(text, [job.error, job.total > 0 ? count : '', over && job.skipped ? `${job.skipped} kept` : '', left && `${left} left`].filter(Boolean).join(' · '));
            const vague = !over && job.state !== 'queued' && !Number.isFinite(job.fraction);
            bar.classList.toggle('tl-vague', vague);
            bar.classList.toggle('tl-failed', job.state === 'failed');
            fill.style.width = `${Math.round(1000 * (over && job.state === 'finished' ? 1 : job.fraction || 0)) / 10}%`;
            bar.setAttribute('aria-valuenow', String(Math.round(100 * (job.fraction || 0))));
            presentFailed();
            show(on, false);
            show(stop, !over);
            stop.disabled = Boolean(job.stopping);
            show(close, over);
            show(back, over && job.written > 0);
            element.classList.toggle('tl-over', over);
            show(element, true);
            if (more) seen();
            if (was && over) ended(job);
        }

        function presentFailed() {
            const list = job.failed || [];
            setText(failedTitle, `${plural(list.length, 'picture')} failed`);
            if (failedList.childElementCount !== list.length) failedList.replaceChildren(...list.map(({filename, reason}) => h('li', {},
                h('button.tl-link', {type: 'button', onclick: () => openPicture(filename)}, filename), ` ${reason}`)));
            show(failed, list.length > 0);
        }

        async function halt() {
            stop.disabled = true;
            try {
                feed.stopped(job.id);
                await feed.ask(post(`jobs/${encode(job.id)}/stop`));
            } catch (error) {
                toast(error.message);
                stop.disabled = false;
            }
        }

        return {element, follow, running, offer, dismiss};
    }

    return {openCaptioning, createCaptioningBar};
};
