/* A job in words, and what can be done with one: pause, resume, stop, snapshot, delete; the same wherever a job is shown. */
(window.trainLora = window.trainLora || {parts: {}}).parts.jobs = (kit) => {
    'use strict';
    const {h, show, setText, button, icon, plural, duration, figure, perStep, url, encode, get, post, send, openDialog, openMenu, ask, toast, feed, isOver, isAtWork, promptBox,
        sendToPrompt, showCheckpoint, checkpointName, copy} = kit;


    // --- Words --------------------------------------------------------------------------------------------------------

    const STATES = {queued: 'Waiting', preparing: 'Preparing', training: 'Training', captioning: 'Captioning', saving: 'Saving', paused: 'Paused', finished: 'Finished',
        stopped: 'Stopped', failed: 'Failed', interrupted: 'Interrupted'};

    const isTraining = ({kind}) => !kind || kind === 'training';
    const nameOf = (job) => job.name || (isTraining(job) ? 'LoRA' : 'Captions');
    const plannedSteps = (job) => job.total_steps || (job.config || {}).max_train_steps || 0;

    /** A job that was taken out of the queue before it did anything. */
    const isCancelled = (job) => job.state === 'stopped' && !job.step && /^Cancelled/.test(job.message || '');

    /** A LoRA that had to be saved where no prompt finds it; the last remark says where. */
    const isElsewhere = (job) => isTraining(job) && ['finished', 'stopped'].includes(job.state) && Boolean(job.output_file) && !job.lora_tag;
    const lastRemark = (job) => (job.remarks || [])[(job.remarks || []).length - 1] || '';

    function stateWord(job) {
        if (isCancelled(job)) return 'Cancelled';
        if (isElsewhere(job)) return `${STATES[job.state]}, saved elsewhere`;
        if (isAtWork(job) && job.stopping) return 'Stopping';
        if (job.state === 'training' && job.pausing) return 'Pausing';
        return STATES[isAtWork(job) && job.stage && STATES[job.stage] ? job.stage : job.state] || job.state;
    }

    /** How far a job is or was: "300 of 1,000", "120 steps", "12 of 24 pictures". */
    function amountOf(job) {
        if (!isTraining(job)) return job.total > 0 ? (job.state === 'queued' || job.done >= job.total ? plural(job.total, 'picture') : `${job.done || 0} of ${plural(job.total, 'picture')}`) : '';
        const total = plannedSteps(job);
        if (job.state === 'queued' && !job.step) return total ? plural(total, 'step') : job.config && job.config.epochs ? plural(job.config.epochs, 'epoch') : '';
        if (!total) return job.step ? plural(job.step, 'step') : '';
        return job.state === 'finished' ? plural(job.step || total, 'step') : `${(job.step || 0).toLocaleString('en')} of ${total.toLocaleString('en')}`;
    }

    /** How long a job worked; null where that is not known. What it waited does not count. */
    const secondsOf = ({elapsed_seconds: seconds}) => (Number.isFinite(seconds) ? seconds : null);

    const pad = (number) => String(number).padStart(2, '0');

    /** "today 14:03", "yesterday 09:12", "3 May 14:03": short, and the same length in a list. */
    function dayAndTime(moment) {
        const date = new Date(moment * 1000);
        if (!moment || Number.isNaN(date.getTime())) return '';
        const day = (shift) => { const other = new Date(); other.setDate(other.getDate() - shift); return other.toDateString(); };
        const time = `${pad(date.getHours())}:${pad(date.getMinutes())}`;
        if (date.toDateString() === day(0)) return `today ${time}`;
        if (date.toDateString() === day(1)) return `yesterday ${time}`;
        const options = {day: 'numeric', month: 'short', ...(date.getFullYear() === new Date().getFullYear() ? {} : {year: 'numeric'})};
        return `${date.toLocaleDateString('en-GB', options)} ${time}`;
    }

    const weightOf = (job) => (job.config || {}).preferred_weight ?? 0.8;
    const snapshotTag = (job, stem) => `<lora:${stem}:${weightOf(job)}>`;

    /** The one thing most people want to do with a run that is over; null where there is none. */
    function resumeLabel(job) {
        if (!isTraining(job) || !isOver(job) || job.resumable === false || job.resumable === undefined) return null;
        if (job.state === 'finished') return 'Train on …';
        const step = job.resume_step ?? job.state_step ?? 0;
        const total = plannedSteps(job);
        return step ? `Resume at step ${step.toLocaleString('en')}${total ? ` of ${total.toLocaleString('en')}` : ''}` : 'Start again';
    }


    // --- Acting -------------------------------------------------------------------------------------------------------

    /** Ask the server for something and take its answer at once. Resolves to whether it was done; what was refused is said. */
    async function act(path, body) {
        try {
            await feed.ask(post(path, body));
            return true;
        } catch (error) {
            toast(error.message);
            return false;
        }
    }

    const at = (job, verb) => `jobs/${encode(job.id)}/${verb}`;
    const pause = (job, freeMemory = false) => act(at(job, 'pause'), freeMemory ? {free_memory: true} : {});
    const stop = (job) => { feed.stopped(job.id); return act(at(job, 'stop')); };
    const snapshot = (job) => act(at(job, 'snapshot'));
    const move = (job, position) => act(at(job, 'move'), {position});

    async function loadCheckpoint(job) {
        const done = await act(at(job, 'load-checkpoint'));
        if (done) showCheckpoint(job.checkpoint);
        feed.loaded();
        return done;
    }

    /** What a held queue does when a run goes on: it starts, too. */
    function followers() {
        const count = feed.held() ? feed.queue().length : 0;
        return !count ? '' : count === 1 ? 'The one that waits follows.' : `The ${count} that wait follow.`;
    }

    /** Go on with a job. Where that would not be the same run the reasons are shown, and only a yes goes on. */
    async function resume(job, {changes, anyway} = {}) {
        const over = isOver(job);
        const follow = over ? followers() : '';
        try {
            const answer = await feed.ask(post(at(job, 'resume'), {...(changes ? {changes} : {}), ...(anyway ? {anyway: true} : {})}));
            if (over && answer.state === 'queued' && feed.current() && feed.current().id !== job.id) toast(`${nameOf(job)} goes on as soon as the machine is free.`);
            else if (follow) toast(`${nameOf(job)} goes on. ${follow}`);
            return true;
        } catch (error) {
            if (error.code === 'name_taken') { if (await askReplace(job, error)) return resume(job, {changes: {...changes, overwrite: true}, anyway}); }
            else if (error.code !== 'cannot_resume') toast(error.message);
            else if (await askAnyway(job, error)) return resume(job, {changes, anyway: true});
            return false;
        }
    }

    async function askAnyway(job, {message, reasons, anyway_possible: possible}) {
        const list = (reasons && reasons.length ? reasons : [message]).map(sentence);
        const text = possible ? `Something changed since ${nameOf(job)} was trained, so going on would not give the same LoRA:`
            : `${nameOf(job)} cannot go on where it was:`;
        return ask({title: possible ? 'Not the same run any more' : 'This run cannot be resumed', text, list, className: 'tl-reasons-dialog',
            answers: possible ? [{label: 'Go on anyway', value: true, kind: 'primary'}] : []});
    }

    /** Another run's file stands where this run's LoRA is to be. */
    const askReplace = (job, {message}) => ask({title: `${nameOf(job)} cannot be saved there`, text: message, answers: /Replace it/.test(message)
        ? [{label: 'Replace it', value: true, kind: 'primary'}] : []});

    const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? '' : '.');

    /** Ask for how much longer a finished run should be trained. */
    function trainOn(job) {
        const {epochs = 0, max_train_steps: steps = 0} = job.config || {};
        const inSteps = steps > 0;
        const before = inSteps ? Math.max(steps, job.step || 0) : epochs;
        const input = h('input.tl-input', {id: 'tl-more', type: 'number', min: 1, step: 1, value: String(inSteps ? Math.max(1, Math.round(before / 2)) : Math.max(1, Math.round(before / 2))),
            oninput: () => present(), onkeydown: (event) => { if (event.key === 'Enter' && !go.disabled) go.click(); }});
        const word = (count) => plural(count, inSteps ? 'step' : 'epoch');
        const note = h('p.tl-help', {'aria-live': 'polite'});
        const go = button('Train on', async () => {
            const more = Number(input.value);
            dialog.close();
            await resume(job, {changes: inSteps ? {max_train_steps: before + more} : {epochs: before + more}});
        }, 'primary');
        const dialog = openDialog({title: `Train ${nameOf(job)} on`, className: 'tl-ask', body: [
            h('p', {}, [`It was trained for ${word(before)}, and goes on from there. The LoRA is replaced when it has finished.`, followers()].filter(Boolean).join(' ')),
            h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-more'}, inSteps ? 'More steps' : 'More epochs'), input, note)],
        foot: [button('Cancel', () => dialog.close()), go]});
        function present() {
            const more = Number(input.value);
            const good = Number.isInteger(more) && more > 0;
            go.disabled = !good;
            setText(note, good ? `${word(before + more)} in all.` : 'A whole number, at least 1.');
        }
        present();
        input.focus();
        input.select();
    }

    const goOn = (job) => (job.state === 'finished' ? trainOn(job) : resume(job));

    async function remove(job) {
        const training = isTraining(job);
        const yes = await ask({title: `Delete ${nameOf(job)}?`, text: training ? 'Its settings, log, figures and saved state go, so it cannot be resumed. The LoRA file stays.'
            : 'Its log goes. The captions stay.', answers: [{label: 'Delete', kind: 'danger', value: true}]});
        if (!yes) return false;
        try {
            await send('DELETE', `jobs/${encode(job.id)}`);
            feed.forget(job.id);
            return true;
        } catch (error) {
            toast(error.message);
            return false;
        }
    }


    // --- Files --------------------------------------------------------------------------------------------------------

    /** The name of the LoRA that a run made; '' where there is none. */
    const loraOf = (job) => (isTraining(job) && job.output_file ? job.output_file.split(/[\\/]/).pop().replace(/\.safetensors$/, '') : '');

    /** Save a LoRA of a job: the file alone, or with its card and preview. */
    async function download(job, lora, {zip = false} = {}) {
        try {
            const files = await get(at(job, 'files'));
            if (!files.some((file) => file.lora === lora)) throw new Error(`${lora} is not there any more, or was replaced by another run.`);
            const path = zip ? `files.zip?lora=${encode(lora)}` : `files/${encode(`${lora}.safetensors`)}`;
            h('a', {href: url(at(job, path)).href, download: zip ? `${lora}.zip` : `${lora}.safetensors`}).click();
        } catch (error) {
            toast(error.message);
        }
    }

    const downloadItems = (job, lora) => [
        {label: 'Download the LoRA', hint: '.safetensors', act: () => download(job, lora)},
        {label: 'Download with its card', hint: '.zip', act: () => download(job, lora, {zip: true})}];


    // --- Snapshots ----------------------------------------------------------------------------------------------------

    const MOST_CHIPS = 6;

    /** The snapshots of a job as chips, newest last; each copies its tag or goes to the prompt. */
    function createSnapshots({tryTag}) {
        let shown = '';
        let all = false;
        const list = h('ul.tl-snapshots');
        const element = h('div.tl-snapshot-box', {hidden: true}, h('h4.tl-small-label', {}, 'Snapshots'), list);

        function present(job) {
            const stems = job.snapshots || [];
            const key = `${job.id} ${stems.join('|')} ${all}`;
            show(element, stems.length > 0);
            if (key === shown) return;
            shown = key;
            const some = all ? stems : stems.slice(-MOST_CHIPS);
            const rest = stems.length - some.length;
            list.replaceChildren(rest ? h('li', {}, h('button.tl-link', {type: 'button', onclick: () => { all = true; present(job); }}, `${rest} earlier`)) : '',
                ...some.map((stem) => h('li', {}, createChip(job, stem))));
        }

        function createChip(job, stem) {
            const tag = snapshotTag(job, stem);
            const trigger = (job.config || {}).trigger_word;
            const chip = h('button.tl-chip-button', {type: 'button', title: tag, 'aria-haspopup': 'menu', onclick: () => openMenu(chip, [
                {label: 'Copy tag', hint: tag, act: () => copy(tag).then(() => toast(`Copied ${tag}`))},
                promptBox() ? {label: 'Send to txt2img', act: () => sendToPrompt(tag, trigger)} : null,
                tryTag && tryTag.ready() ? {label: 'Try it', act: () => tryTag(tag, trigger)} : null, ...downloadItems(job, stem)].filter(Boolean), `Snapshot ${stem}`)},
            shortStem(job, stem), icon('down'));
            chip.setAttribute('aria-label', `Snapshot ${stem}`);
            return chip;
        }

        return {element, present};
    }

    /** "mine-000100" of the run mine is "step 100". */
    function shortStem(job, stem) {
        const number = /-(\d+)$/.exec(stem);
        return number ? `Step ${Number(number[1]).toLocaleString('en')}` : stem;
    }


    // --- Remarks ------------------------------------------------------------------------------------------------------

    const MOST_REMARKS = 2;

    /** What a run had to say, newest first and not too much of it; of one that ended well only how much there is. */
    function createRemarks() {
        let open = false;
        let shown = {};
        const list = h('ul.tl-notes');
        const more = h('button.tl-link.tl-notes-more', {type: 'button', onclick: () => { open = !open; present(shown); }});
        const element = h('div.tl-notes-box', {hidden: true, 'aria-label': 'Notes', role: 'group'}, list, more);

        function present(job) {
            if (job.id !== shown.id || (isOver(job) && !isOver(shown))) open = false;
            shown = job;
            const remarks = [...(job.remarks || [])].reverse().slice(isElsewhere(job) ? 1 : 0);             // That one stands by itself.
            const few = isOver(job) && !isElsewhere(job) && ['finished', 'stopped'].includes(job.state) ? [] : remarks.slice(0, MOST_REMARKS);
            const texts = open ? remarks : few;
            const rest = remarks.length - few.length;
            if (texts.length !== list.childElementCount || texts.some((text, index) => list.children[index].textContent !== text)) {
                list.replaceChildren(...texts.map((text) => h('li', {}, text)));
            }
            show(list, texts.length > 0);
            setText(more, open ? (few.length ? 'Show fewer' : 'Hide the notes') : few.length ? `${rest} more` : plural(rest, 'note'));
            more.setAttribute('aria-expanded', String(open));
            show(more, rest > 0);
            show(element, remarks.length > 0);
        }

        return {element, present};
    }


    // --- Facts --------------------------------------------------------------------------------------------------------

    /** [name, value] of a job that is over, for a list of facts. */
    function factsOf(job) {
        if (!isTraining(job)) return [['Captioner', job.captioner], ['Written', job.written !== undefined ? String(job.written) : ''], ['Kept', job.skipped ? String(job.skipped) : ''],
            ['Failed', (job.failed || []).length ? String(job.failed.length) : ''], ['Took', duration(secondsOf(job))]].filter(([, value]) => value);
        const config = job.config || {};
        return [['Steps', amountOf(job)], ['Final loss', Number.isFinite(job.loss_average ?? job.loss) ? figure(job.loss_average ?? job.loss) : ''], ['Validation loss', Number.isFinite(job.validation_loss) ? figure(job.validation_loss) : ''],
            ['Took', duration(secondsOf(job))], ['Per step', Number.isFinite(job.seconds_per_step) ? perStep(job.seconds_per_step) : ''], ['Resolution', config.resolution ? `${config.resolution} px` : ''],
            ['Rank', config.lora_rank ? String(config.lora_rank) : ''], ['Learning rate', config.learning_rate ? String(config.learning_rate) : ''],
            ['Checkpoint', job.checkpoint ? checkpointName(job.checkpoint) : '']].filter(([, value]) => value);
    }

    return {STATES, isTraining, isCancelled, isElsewhere, lastRemark, followers, createRemarks, nameOf, plannedSteps, stateWord, amountOf, secondsOf, dayAndTime, resumeLabel, factsOf, createSnapshots, loraOf, downloadItems,
        jobs: {pause, resume, stop, snapshot, move, loadCheckpoint, goOn, remove}};
};
