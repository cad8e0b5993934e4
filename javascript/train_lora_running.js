/* The run in front: its progress and curve, what can be done with it while it works, and what came of it. */
(window.trainLora = window.trainLora || {parts: {}}).parts.running = (kit) => {
    'use strict';
    const {h, show, setText, button, icon, tool, duration, figure, perStep, openMenu, toast, feed, isOver, isAtWork, isElsewhere, lastRemark, followers, stateWord, nameOf, plannedSteps, resumeLabel, checkpointName, jobs,
        createChart, createRemarks, createSnapshots, loraOf, downloadItems, copyButton, promptBox, sendToPrompt, remember, say} = kit;

    const PATIENCE_MS = 15_000;

    const withIcon = (name, label, onclick, kind = '') => {
        const control = button('', onclick, kind);
        control.append(icon(name), h('span', {}, label));
        return Object.assign(control, {say: (text, working = false) => { setText(control.lastChild, text); control.classList.toggle('tl-working', working); }});
    };

    /** The figures of a run as a curve that fills its own gaps. */
    function createCurve() {
        const chart = createChart();
        let job = {};
        let filling = false;

        function show(next) {
            const other = job.id !== next.id || (isOver(job) && !isOver(next));            // A resumed run may have lost its last steps.
            job = next;
            if (other) {
                chart.reset(plannedSteps(job));
                fill();
            }
        }

        async function fill() {
            if (filling) return;
            const {id} = job;
            filling = true;
            await feed.readMetrics(id, chart.last()).catch(() => {});
            filling = false;
            if (job.id !== id) fill();
        }

        feed.hear((kind, value) => {
            if (kind === 'metrics' && value.id === job.id && value.rows.length) {
                const missing = value.rows[0].step > chart.last() + 1;
                if (missing && !filling) fill();
                else if (!missing) chart.append(value.rows, plannedSteps(job));
            } else if (kind === 'alive' && job.id && !isOver(job)) fill();
        });
        return {element: chart.element, show, last: chart.last, fill};
    }

    function createJobView({tryTag}) {
        let job = null;
        let announced = '';
        let awaited = {};                                                                  // What was asked for and is not seen yet: {verb, count, until}.

        const title = h('h4.tl-job-title');
        const state = h('span.tl-state');
        const fill = h('div.tl-bar-fill');
        const bar = h('div.tl-bar', {role: 'progressbar', 'aria-valuemin': '0', 'aria-valuemax': '100', 'aria-label': 'Training progress'}, fill);
        const stage = h('p.tl-stage');
        const figures = {step: h('dd'), loss: h('dd'), measured: h('dd'), left: h('dd'), speed: h('dd')};
        const stats = h('dl.tl-stats', {}, ...[['Step', 'step'], ['Loss', 'loss'], ['Validation', 'measured'], ['Time left', 'left'], ['Per step', 'speed']].map(([name, key]) =>
            h('div', {}, h('dt', {}, name), figures[key])));
        const live = h('p.tl-hidden', {'aria-live': 'polite', role: 'status'});

        const pause = withIcon('pause', 'Pause', () => ask('pause', () => jobs.pause(job)));
        pause.id = 'tl-pause';
        const pauseMore = tool('down', 'Ways to pause', () => openMenu(pauseMore, [
            {label: 'Pause', hint: 'goes on at once', act: () => ask('pause', () => jobs.pause(job))},
            {label: 'Pause and free memory', hint: 'slower to go on', act: () => ask('pause', () => jobs.pause(job, true))}], 'Ways to pause'), {'aria-haspopup': 'menu'});
        pauseMore.id = 'tl-pause-more';
        const split = h('div.tl-split', {}, pause, pauseMore);
        const snapshot = withIcon('camera', 'Snapshot', () => ask('snapshot', () => jobs.snapshot(job)));
        snapshot.id = 'tl-snapshot';
        snapshot.setAttribute('aria-label', 'Snapshot now');
        const stop = withIcon('stop', 'Stop', () => ask('stop', () => jobs.stop(job)));
        stop.id = 'tl-stop';
        stop.title = 'End here; what is learned by then is saved';
        const controls = h('div.tl-job-controls', {}, split, snapshot, stop);

        const pausedTitle = h('strong');
        const pausedText = h('p');
        const go = withIcon('play', 'Resume', () => ask('resume', () => jobs.resume(job)), 'primary.tl-large');
        go.id = 'tl-resume';
        const load = button('', () => ask('load', () => jobs.loadCheckpoint(job)), 'primary.tl-large');
        load.id = 'tl-load-checkpoint';
        const paused = h('div.tl-notice.tl-paused', {hidden: true}, pausedTitle, pausedText, go, load);

        const remarks = createRemarks();
        const snapshots = createSnapshots({tryTag});
        const curve = createCurve();

        const tag = h('code.tl-tag');
        const trigger = () => (job.config || {}).trigger_word;
        const sendButton = button('Send to txt2img', () => sendToPrompt(tag.textContent, trigger()), 'primary');
        const tryButton = button('Try it', () => tryTag(tag.textContent, trigger()), 'primary');
        const on = button('', () => jobs.goOn(job));
        on.id = 'tl-go-on';
        const save = button('Download', () => openMenu(save, downloadItems(job, loraOf(job)), 'Download'));
        save.id = 'tl-download';
        save.setAttribute('aria-haspopup', 'menu');
        const file = h('p.tl-path.tl-wrap');
        const resultNote = h('p');
        const resultActions = h('div.tl-actions', {}, sendButton, tryButton, save);
        const result = h('div.tl-notice.tl-good', {hidden: true}, resultNote, h('div.tl-tag-line', {}, tag, copyButton(() => tag.textContent)), resultActions, file);
        const failureTitle = h('strong');
        const failureText = h('p');
        const failureActions = h('div.tl-actions');
        const follow = h('p.tl-help.tl-follow', {hidden: true});
        const failure = h('div.tl-notice.tl-bad', {hidden: true, role: 'alert'}, failureTitle, failureText, failureActions, follow);
        const element = h('div.tl-job', {hidden: true}, h('div.tl-job-head', {}, title, state), bar, stage, stats, controls, paused, failure, result, remarks.element, snapshots.element,
            curve.element, live);

        /** Do something, and show that it was asked for until the job shows that it happened. */
        async function ask(verb, act) {
            awaited = {verb, snapshots: (job.snapshots || []).length, until: Date.now() + PATIENCE_MS};
            present(job);
            const mine = awaited;
            if (!await act() && mine === awaited) awaited = {};
            if (verb === 'load' || verb === 'resume') awaited = {};
            present(job);
            setTimeout(() => { if (mine === awaited) { awaited = {}; present(job); } }, PATIENCE_MS);
        }

        function settle(next) {
            const {verb} = awaited;
            const happened = !isAtWork(next) || (verb === 'pause' && (next.state === 'paused' || next.pausing)) || (verb === 'stop' && next.stopping)
                || (verb === 'snapshot' && (next.snapshots || []).length > awaited.snapshots);
            if (verb === 'snapshot' && happened && isAtWork(next)) toast(`Saved ${next.snapshots[next.snapshots.length - 1]}`);
            if (happened || Date.now() > awaited.until) awaited = {};
        }

        /** Show a job, at work or over. */
        function present(next) {
            if (awaited.verb && (!job || job.id !== next.id)) awaited = {};
            job = next;
            if (awaited.verb) settle(job);
            show(element, true);
            curve.show(job);
            feed.follow(job.id, curve.last);
            remember({job: job.id});
            presentProgress();
            presentControls();
            presentPaused();
            presentOutcome();
            remarks.present(job);
            snapshots.present(job);
            announce();
        }

        const isPaused = () => job.state === 'paused';

        function presentProgress() {
            const atWork = isAtWork(job);
            const total = plannedSteps(job);
            const share = job.fraction ?? (total ? (job.step || 0) / total : 0);
            const vague = atWork && !isPaused() && (job.fraction === null || job.fraction === undefined) && !job.step;
            const kind = isPaused() ? 'paused' : atWork && job.stage ? job.stage : job.state;
            setText(title, nameOf(job));
            title.title = nameOf(job);
            setText(state, stateWord(job));
            state.className = `tl-state tl-is-${isElsewhere(job) ? 'elsewhere' : kind}`;
            bar.classList.toggle('tl-vague', vague);
            bar.classList.toggle('tl-failed', job.state === 'failed');
            bar.classList.toggle('tl-still', isPaused() || ['stopped', 'interrupted'].includes(job.state));
            const percent = job.state === 'finished' ? 100 : 100 * share;
            fill.style.width = `${Math.round(10 * percent) / 10}%`;
            bar.setAttribute('aria-valuenow', String(Math.round(percent)));
            const epochs = (job.config || {}).epochs;
            setText(stage, job.message && job.message !== stateWord(job) ? job.message
                : job.epoch ? `Epoch ${job.epoch}${epochs && !((job.config || {}).max_train_steps > 0) ? ` of ${epochs}` : ''}` : '');
            show(stage, atWork && !isPaused());
            setText(figures.step, total ? `${(job.step || 0).toLocaleString('en')} of ${total.toLocaleString('en')}` : '–');
            setText(figures.loss, figure(job.loss_average ?? job.loss));
            setText(figures.measured, figure(job.validation_loss));
            show(figures.measured.parentElement, Number.isFinite(job.validation_loss));
            stats.classList.toggle('tl-five', Number.isFinite(job.validation_loss));
            setText(figures.left, atWork ? duration(job.eta_seconds) || '–' : '–');
            setText(figures.speed, perStep(job.seconds_per_step));
        }

        function presentControls() {
            const atWork = isAtWork(job);
            const {verb} = awaited;
            show(controls, atWork);
            if (!atWork) return;
            const stopping = Boolean(job.stopping) || verb === 'stop';
            const pausing = Boolean(job.pausing) || verb === 'pause';
            const trains = job.state === 'training';
            show(split, !isPaused());
            pause.disabled = stopping || pausing;
            pauseMore.disabled = pause.disabled;
            pause.say(pausing && !stopping ? 'Pausing …' : 'Pause', pausing && !stopping);
            show(snapshot, trains || isPaused());
            const absent = isPaused() && job.waiting_for === 'checkpoint';
            snapshot.disabled = stopping || verb === 'snapshot' || !job.step || absent;
            snapshot.title = absent ? `Not while ${checkpointName(job.checkpoint)} is not loaded: load it, or wait until it is back`
                : 'Snapshot now: save the LoRA as it is, and go on';
            snapshot.say(verb === 'snapshot' ? 'Saving …' : 'Snapshot', verb === 'snapshot');
            stop.disabled = stopping;
            stop.say(stopping ? 'Stopping …' : 'Stop', stopping);
            controls.classList.toggle('tl-two', split.hidden || snapshot.hidden);
        }

        function presentPaused() {
            show(paused, isPaused());
            if (!isPaused()) return;
            const checkpoint = job.waiting_for === 'checkpoint';
            const place = job.step ? `at step ${job.step.toLocaleString('en')}${plannedSteps(job) ? ` of ${plannedSteps(job).toLocaleString('en')}` : ''}` : '';
            setText(pausedTitle, checkpoint ? `Paused: waiting for the checkpoint ${checkpointName(job.checkpoint)}` : ['Paused', place].filter(Boolean).join(' '));
            setText(pausedText, checkpoint ? 'Training goes on by itself as soon as it is loaded again. Nothing is lost.'
                : job.free_memory ? 'Its memory is free for other things. Nothing is lost; going on takes a moment longer.'
                    : job.waiting_for && job.waiting_for !== 'user' && job.message ? job.message : 'Nothing is lost. The queue waits, too.');
            show(go, !checkpoint);
            show(load, checkpoint);
            go.disabled = awaited.verb === 'resume' || Boolean(job.stopping);
            go.say(awaited.verb === 'resume' ? 'Resuming …' : 'Resume', awaited.verb === 'resume');
            load.disabled = awaited.verb === 'load' || Boolean(job.stopping);
            setText(load, awaited.verb === 'load' ? `Loading ${checkpointName(job.checkpoint)} …` : `Load ${checkpointName(job.checkpoint)}`);
            load.title = job.checkpoint;
        }

        function presentOutcome() {
            const over = isOver(job);
            const done = ['finished', 'stopped'].includes(job.state) && Boolean(job.output_file);
            const bad = ['failed', 'interrupted'].includes(job.state);
            const before = !job.step;
            setText(failureTitle, before ? `${stateWord(job)} before the first step`
                : `${stateWord(job)} at step ${job.step.toLocaleString('en')}${plannedSteps(job) ? ` of ${plannedSteps(job).toLocaleString('en')}` : ''}`);
            setText(failureText, job.error || job.message || 'The log says more.');
            failure.classList.toggle('tl-bad', job.state === 'failed');
            failure.classList.toggle('tl-warn', job.state === 'interrupted');
            show(failure, bad);
            const call = trigger() ? `Write “${trigger()}” and this tag in a prompt:` : 'Write this tag in a prompt:';
            const elsewhere = isElsewhere(job);
            const stopped = done ? `Stopped at step ${job.step}; what it had learned by then is saved. ${call}`
                : before && job.message ? job.message : 'Stopped before the first step; nothing was saved.';
            const where = lastRemark(job) || 'It could not be saved where prompts find it. It is here:';
            setText(resultNote, elsewhere ? where : job.state === 'stopped' ? stopped : call);
            result.classList.toggle('tl-good', done && !elsewhere);
            result.classList.toggle('tl-warn', elsewhere);
            setText(tag, job.lora_tag || '');
            setText(file, job.output_file || '');
            show(tag.parentElement, Boolean(job.lora_tag));
            show(sendButton, Boolean(job.lora_tag && promptBox()));
            show(tryButton, Boolean(job.lora_tag && tryTag && tryTag.ready()));
            show(save, Boolean(loraOf(job)));
            show(file, Boolean(job.output_file));
            show(result, over && (done || job.state === 'stopped'));
            const label = resumeLabel(job);
            setText(on, label || '');
            show(on, Boolean(label));
            setText(follow, label ? followers() : '');
            show(follow, Boolean(follow.textContent));
            on.classList.toggle('tl-primary', bad);
            const place = bad ? failureActions : resultActions;
            if (on.parentElement !== place) { place.append(on); place.after(follow); }
            show(failureActions, Boolean(label));
            show(resultActions, Boolean(label) || !sendButton.hidden || !tryButton.hidden || !save.hidden);
        }

        /** Tell screen readers about stages and tenths, not about every step. */
        function announce() {
            const tenth = Math.floor(10 * (job.fraction || 0)) * 10;
            const words = isPaused() ? pausedTitle.textContent : isAtWork(job) ? `${nameOf(job)}: ${stateWord(job)}, ${tenth} percent` : `${nameOf(job)}: ${stateWord(job)}. ${job.error || ''}`;
            if (words !== announced) say(live, announced = words);
        }

        return {element, present, current: () => job, hide: () => { job = null; show(element, false); }};
    }

    return {createJobView, createCurve};
};
