/* What is told while nobody looks: the page's title, and a notification of the browser for those who switched it on. */
(window.trainLora = window.trainLora || {parts: {}}).parts.notify = (kit) => {
    'use strict';
    const {h, show, setText, remember, remembered, feed, isTraining, isElsewhere, lastRemark, nameOf, plannedSteps} = kit;

    const MARKS = {finished: ['✓', 'finished'], failed: ['✗', 'failed'], interrupted: ['✗', 'was interrupted'], stopped: ['■', 'stopped']};

    const markOf = (job) => (isElsewhere(job) ? ['!', `${MARKS[job.state][1]}, saved elsewhere`] : MARKS[job.state]);

    /** Inside of the WebUI the title is the WebUI's: only a mark is put in front of it, and taken away again. */
    const ownsTitle = () => typeof window.onUiLoaded !== 'function';
    const looked = () => !document.hidden && document.hasFocus();

    function createTitle() {
        const own = ownsTitle() ? 'Train LoRA' : '';
        let mark = '';

        function present() {
            const job = feed.current();
            const bare = mark && document.title.startsWith(mark) ? document.title.slice(mark.length) : document.title;
            const percent = job && isTraining(job) && plannedSteps(job) ? Math.floor(100 * (job.step || 0) / plannedSteps(job)) : null;
            const base = !own ? bare : job && job.state === 'paused' ? `Paused · ${own}` : percent !== null ? `${percent} % · ${own}` : own;
            return base;
        }

        function write(nextMark) {
            const title = nextMark + present();
            mark = nextMark;
            if (document.title !== title) document.title = title;
        }

        return {
            refresh: () => { if (own) write(mark); },
            ended: (job) => { const [sign, word] = markOf(job); write(`${sign} ${nameOf(job)}: ${word} · `); },
            seen: () => { if (mark) write(''); },
        };
    }

    /** A switch that asks for the browser's permission when it is switched on, and never by itself. */
    function createSwitch() {
        const possible = () => 'Notification' in window;
        const allowed = () => possible() && Notification.permission === 'granted';
        const on = () => Boolean(remembered().notify) && allowed();
        const input = h('input.tl-switch', {id: 'tl-notify', type: 'checkbox', role: 'switch', onchange: () => turn()});
        const note = h('p.tl-help.tl-notify-note', {hidden: true, role: 'status'});
        const element = h('label.tl-notify', {htmlFor: 'tl-notify', title: 'A message of your browser when a job has ended'}, h('span', {}, 'Notify me'), input);

        async function turn() {
            if (input.checked && possible() && Notification.permission === 'default') await Notification.requestPermission();
            const refused = input.checked && !allowed();
            remember({notify: input.checked && !refused});
            setText(note, !refused ? '' : !possible() || !window.isSecureContext ? 'This browser notifies only pages opened over https or on this machine. The title of the page still tells.'
                : 'The browser does not let this page notify you; allow it beside the address. The title of the page still tells.');
            show(note, refused);
            input.checked = on();
        }

        input.checked = on();
        return {element, note, on};
    }

    function createNotifier() {
        const title = createTitle();
        const toggle = createSwitch();

        function tell(job) {
            if (job.state === 'stopped' && job.stopping) return;                           // Somebody just pressed Stop.
            if (!looked()) title.ended(job);
            if (looked() || !toggle.on()) return;
            const [, word] = markOf(job);
            try {
                const note = new Notification(`${nameOf(job)} ${word}`, {body: job.error || job.lora_tag || (isElsewhere(job) && lastRemark(job)) || job.message || '', tag: `train-lora-${job.id}`});
                note.onclick = () => { window.focus(); note.close(); };
            } catch {
                // Some browsers have the word but not the thing; the title has told.
            }
        }

        const see = () => { if (looked()) title.seen(); };
        window.addEventListener('focus', see);
        document.addEventListener('visibilitychange', see);
        document.addEventListener('pointerdown', see);
        feed.hear((kind, job) => {
            if (kind === 'ended') tell(job);
            if (kind === 'job' || kind === 'jobs') title.refresh();
        });
        return {element: toggle.element, note: toggle.note};
    }

    return {createNotifier};
};
