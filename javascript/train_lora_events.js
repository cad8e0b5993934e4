/* The live link: what the server knows of jobs and the queue, for every part of the page.
 *
 * One WebSocket tells everything as it happens. While it cannot be had, or after it died, the same is asked by GET, and the socket is
 * tried again by itself, rarely. Whoever listens cannot tell the difference.
 */
(window.trainLora = window.trainLora || {parts: {}}).parts.events = (kit) => {
    'use strict';
    const {get, url, encode, link} = kit;

    const LIST_EVERY_MS = 5000;
    const FIRST_WAIT_MS = 1000;
    const LONGEST_WAIT_MS = 30_000;
    const TRIES_BEFORE_SAYING = 2;
    const OVER = ['finished', 'stopped', 'failed', 'interrupted'];

    const isOver = ({state}) => OVER.includes(state);
    const isQueued = ({state}) => state === 'queued';
    const isAtWork = (job) => !isOver(job) && !isQueued(job);

    /** The socket alone: opened, told of, opened again after it closed; the longer it could not be had, the more rarely. */
    function createSocket({hear, closed}) {
        let socket = null;
        let tries = 0;
        let timer = 0;

        function open() {
            clearTimeout(timer);
            if (socket) return;
            const address = url('events');
            address.protocol = address.protocol === 'https:' ? 'wss:' : 'ws:';
            try {
                socket = new WebSocket(address);
            } catch {
                again();                                                                   // A page may forbid sockets altogether.
                return;
            }
            const mine = socket;
            mine.onmessage = ({data}) => {
                if (mine !== socket) return;
                tries = 0;
                try {
                    hear(JSON.parse(data));
                } catch (error) {
                    console.error('Train LoRA', error);
                    close();                                                               // Asking goes on where telling failed.
                }
            };
            mine.onclose = () => { if (mine === socket) close(); };
        }

        function close() {
            const mine = socket;
            if (!mine) return;
            socket = null;
            mine.close();
            closed();
            again();
        }

        function again() {
            clearTimeout(timer);
            timer = setTimeout(() => link.whenBack(open), Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** tries));
            tries += 1;
        }

        /** It could not be had several times: something in between does not let it through. */
        const blocked = () => tries >= TRIES_BEFORE_SAYING;

        return {open, close, blocked};
    }

    /** The jobs as they are now. Listeners hear (kind, value): "jobs", "job" job, "ended" job, "metrics" {id, rows}, "status" part of a status, "alive", and "loaded" when somebody asked for
     * another checkpoint. */
    function createFeed() {
        const hearers = new Set();
        const jobs = new Map();
        let order = [];                                                                    // Ids, newest first.
        let held = false;
        let alive = false;
        let known = false;
        let listed = 0;
        let followed = null;
        let working = '';
        let model = null;                                                                  // What is loaded, as the last status had it.
        let news = 0;
        const newsOf = new Map();                                                          // The number of the last news of a job.
        const stoppedHere = new Set();

        const tell = (kind, value) => hearers.forEach((hear) => hear(kind, value));
        const all = () => order.map((id) => jobs.get(id));
        const current = () => all().find(isAtWork) || null;
        const queue = () => all().filter(isQueued).sort((a, b) => (a.position ?? Infinity) - (b.position ?? Infinity) || Number(a.id) - Number(b.id));

        const socket = createSocket({hear: receive, closed() {
            if (!alive) return;
            alive = false;
            listed = 0;
            tell('alive', false);
        }});

        function receive(message) {
            news += 1;
            if (message.type === 'jobs') {
                const first = !alive;
                alive = true;
                message.jobs.forEach(({id}) => newsOf.set(id, news));
                takeAll(message.jobs);
                if (first) tell('alive', true);
            } else if (message.type === 'job') {
                newsOf.set(message.job.id, news);
                takeSome([message.job]);
            } else if (message.type === 'metrics') tell('metrics', {id: String(message.id), rows: message.rows});
            else if (message.type === 'status') takeStatus(message);
        }

        /** Keep a job, and return it if it has ended since; one that came and went unseen has, too. */
        function keep(job) {
            const before = jobs.get(job.id);
            jobs.set(job.id, job);
            if (!known || !isOver(job) || (before && isOver(before))) return null;
            const cancelled = job.state === 'stopped' && (before ? isQueued(before) : !job.step);
            return {...job, stopping: Boolean(job.stopping || (before && before.stopping) || cancelled || stoppedHere.has(job.id))};
        }

        function takeAll(list) {
            const ended = list.map(keep).filter(Boolean).sort((a, b) => (a.finished_at || 0) - (b.finished_at || 0));
            order = list.map(({id}) => id);
            const current = jobs.get(working);
            if (current && !order.includes(working) && !isOver(current)) order.push(working);               // Resumed, and older than what is listed.
            for (const id of [...jobs.keys()]) if (!order.includes(id)) jobs.delete(id);
            known = true;
            tell('jobs');
            ended.forEach((job) => tell('ended', job));
        }

        function takeSome(list) {
            const changed = list.some((job) => { const before = jobs.get(job.id); return !before || before.state !== job.state || before.position !== job.position; });
            const ended = list.map(keep).filter(Boolean).sort((a, b) => (a.finished_at || 0) - (b.finished_at || 0));
            const fresh = list.map(({id}) => id).filter((id) => !order.includes(id));
            if (fresh.length) order = [...fresh, ...order].sort((a, b) => Number(b) - Number(a));
            if (changed) tell('jobs');
            list.forEach((job) => tell('job', job));
            ended.forEach((job) => tell('ended', job));
        }

        function takeStatus(status) {
            const was = held;
            if ('queue_held' in status) held = Boolean(status.queue_held);
            working = String((status.current_job || {}).id || status.current_job || '');
            if (working && known && !jobs.has(working)) fetch(working).catch(() => {});
            const before = model;
            if (status.model) model = status.model;
            tell('status', status);
            if (was !== held || (before || {}).checkpoint !== (model || {}).checkpoint) tell('jobs');
        }

        /** Ask for something and take what is answered, a job or the jobs that wait, unless the link has told newer things of them meanwhile. */
        async function ask(request) {
            const before = news;
            const answer = await request;
            const list = [].concat(answer).filter((job) => job && job.id && job.state && job.kind);
            takeSome(list.filter(({id}) => !alive || !(newsOf.get(id) > before)));
            return answer;
        }

        async function list() {
            listed = Date.now();
            const before = news;
            const found = await get('jobs');
            if (!alive || news === before) takeAll(found);
        }

        async function fetch(id) {
            await ask(get(`jobs/${encode(id)}`));
            return jobs.get(id);
        }

        function forget(id) {
            jobs.delete(id);
            order = order.filter((other) => other !== id);
            tell('jobs');
        }

        /** Name the run whose figures are shown; `last()` is the last step that is known of it. */
        function follow(id, last) {
            followed = {id, last};
        }

        async function readMetrics(id, since) {
            tell('metrics', {id, rows: await get(`jobs/${encode(id)}/metrics?since=${since}`)});
        }

        /** One round of asking, while there is no socket. */
        async function poll({now = false} = {}) {
            if (alive) return;
            if (now || Date.now() - listed >= LIST_EVERY_MS) await list();
            const running = current();
            if (!running || alive) return;
            const next = await fetch(running.id);
            if (followed && followed.id === next.id && !alive) await readMetrics(next.id, followed.last());
            if (isOver(next)) listed = 0;                                                  // The next of the queue has begun.
        }

        return {
            connect: socket.open, drop: socket.close, blocked: socket.blocked, alive: () => alive, hear: (hearer) => hearers.add(hearer), ask, takeStatus, list, stopped: (id) => stoppedHere.add(id), fetch, forget, follow, readMetrics, poll,
            job: (id) => jobs.get(id) || null, all, current, queue, over: () => all().filter(isOver), model: () => model, loaded: () => tell('loaded'),
            held: () => held, hold: (value) => { held = value; tell('jobs'); },
        };
    }

    return {feed: createFeed(), isOver, isQueued, isAtWork};
};
