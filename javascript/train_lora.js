/* The live parts of the tab Train LoRA: this file has the kit and the page; its neighbours train_lora_*.js the parts.
 *
 * Fills the element #train_lora_app, wherever gradio puts it, and talks to the REST API under train-lora/v1/ by itself. Runs the same
 * in the WebUI's tab and on the standalone page. What comes from the server is only ever put in as text, never as markup.
 *
 * The files are plain scripts that may load in any order: each puts a function of the kit into trainLora.parts, and the page is made when
 * all are there.
 */
(() => {
    'use strict';

    const APP_ID = 'train_lora_app';
    const TAB_ID = 'tab_train_lora';
    const STORE_KEY = 'train-lora.v1';
    // Each gets what those before it gave.
    const PARTS = ['widgets', 'webui', 'events', 'fields', 'presets', 'settings', 'settings_import', 'dataset', 'grid', 'tags', 'bulk', 'detail', 'importing', 'tables', 'captioning', 'pictures', 'gallery', 'chart', 'jobs', 'job_dialogs', 'running', 'queue', 'history', 'notify', 'training', 'generate'];


    // --- Elements -----------------------------------------------------------------------------------------------------

    /** Make an element: h('p.tl-note', {title: 'x', onclick: f}, 'text', child). Strings become text nodes. */
    function h(selector, properties = {}, ...children) {
        const [tag, ...classes] = selector.split('.');
        const element = document.createElement(tag || 'div');
        element.className = classes.join(' ');
        for (const [key, value] of Object.entries(properties)) {
            if (value === undefined || value === null) continue;
            if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
            else if (key in element && !key.includes('-')) element[key] = value;
            else element.setAttribute(key, value);
        }
        element.append(...children.filter((child) => child !== null && child !== undefined));
        return element;
    }

    const show = (element, visible) => {
        element.hidden = !visible;
        return element;
    };

    /** Set text only when it differs, so that nothing flickers and selections survive. */
    const setText = (element, text) => {
        if (element.textContent !== text) element.textContent = text;
    };

    const button = (label, onclick, kind = '') => h(`button.tl-button${kind && `.tl-${kind}`}`, {type: 'button', onclick}, label);

    const iconButton = (label, title, onclick) => h('button.tl-link', {type: 'button', title, onclick}, label);

    const card = (number, title, ...children) =>
        h('section.tl-card', {'aria-label': title}, h('header.tl-card-head', {}, h('span.tl-number', {'aria-hidden': 'true'}, String(number)), h('h3.tl-title', {}, title)),
            ...children);


    // --- Words --------------------------------------------------------------------------------------------------------

    const plural = (count, one, many = `${one}s`) => `${count.toLocaleString('en')} ${count === 1 ? one : many}`;

    function duration(seconds) {
        if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return null;
        const total = Math.max(0, Math.round(seconds));
        const [hours, minutes, rest] = [Math.floor(total / 3600), Math.floor(total / 60) % 60, total % 60];
        if (hours) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
        if (minutes) return minutes < 10 && rest ? `${minutes} min ${rest} s` : `${minutes} min`;
        return `${total} s`;
    }

    function bigNumber(value) {
        for (const [size, unit] of [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) {
            if (value >= size) return `${(value / size).toFixed(value >= 100 * size ? 0 : 1)} ${unit}`;
        }
        return String(value);
    }

    /** The size of a file, as shops and servers give it. */
    const fileSize = (value) => (value >= 1e9 ? `${(value / 1e9).toFixed(2).replace(/\.?0+$/, '')} GB` : `${Math.max(1, Math.round(value / 1e6))} MB`);

    const bytes = (value) => (value >= 2 ** 30 ? `${(value / 2 ** 30).toFixed(1)} GB` : `${Math.max(1, Math.round(value / 2 ** 20))} MB`);

    const figure = (value, digits = 4) => (Number.isFinite(value) ? value.toFixed(digits) : '–');

    function perStep(seconds) {
        if (!Number.isFinite(seconds) || seconds <= 0) return '–';
        return seconds >= 0.1 ? `${seconds.toFixed(2)} s` : `${(seconds * 1000).toFixed(0)} ms`;
    }

    const FAMILIES = {sd1: 'SD1', sd2: 'SD2', sdxl: 'SDXL'};
    const VARIANTS = {'': '', inpainting: 'inpainting', 'ssd-1b': 'SSD-1B'};
    const PREDICTS = {epsilon: 'noise', v_prediction: 'v'};
    const DTYPES = {float32: 'fp32', float16: 'fp16', bfloat16: 'bf16', 'torch.float32': 'fp32', 'torch.float16': 'fp16', 'torch.bfloat16': 'bf16'};


    // --- Server -------------------------------------------------------------------------------------------------------

    /** An answer that is an error (`code`, `field` and what else the server tells of it), or no answer at all (`offline`). */
    class ServerError extends Error {
        constructor(message, {code = '', field = null, status = 0, offline = false, conflicts = [], reasons = [], lines = [], anyway_possible = false} = {}) {
            super(message);
            Object.assign(this, {code, field, status, offline, conflicts, reasons, lines, anyway_possible});
        }
    }

    const url = (path) => new URL(path, new URL('train-lora/v1/', document.baseURI));
    const encode = encodeURIComponent;

    function errorFrom(status, text) {
        try {
            const body = JSON.parse(text);
            if (body?.error) return new ServerError(body.error.message, {...body.error, status});
            if (body?.detail) return new ServerError(typeof body.detail === 'string' ? body.detail : JSON.stringify(body.detail), {status});
        } catch (error) {
            if (!(error instanceof SyntaxError)) throw error;
        }
        const offline = status === 0 || status === 502 || status === 503 || status === 504;
        return new ServerError(`The server answered with status ${status}. Its log says more.`, {status, offline});
    }

    /** Whether the server answers. While it does not, only the page's own slow tries ask; the timers of the parts wait for one of them to succeed. */
    function createLink() {
        const waiting = new Set();
        let away = false;
        let tell = () => {};

        function heard(answers) {
            if (away !== answers) return;
            away = !answers;
            tell(answers);
            if (away) return;
            const acts = [...waiting];
            waiting.clear();
            acts.forEach((act) => act());
        }

        return {away: () => away, heard, listen: (hear) => { tell = hear; }, whenBack: (act) => { if (away) waiting.add(act); else act(); }};
    }

    const link = createLink();

    async function send(method, path, body) {
        const options = {method, credentials: 'same-origin', headers: {}};
        if (body !== undefined) {
            options.headers['Content-Type'] = 'application/json';
            options.body = JSON.stringify(body);
        }
        let response;
        try {
            response = await fetch(url(path), options);
        } catch {
            link.heard(false);
            throw new ServerError('The server does not answer.', {offline: true});
        }
        const error = response.ok ? null : errorFrom(response.status, await response.text());
        link.heard(!(error && error.offline));
        if (error) throw error;
        return response;
    }

    const get = async (path) => (await send('GET', path)).json();
    const post = async (path, body = {}) => (await send('POST', path, body)).json();
    const patch = async (path, body) => (await send('PATCH', path, body)).json();

    /** Upload files, and fields of a form, in one request; `onProgress` hears the number of bytes sent so far. */
    function upload(path, files, onProgress = () => {}, fields = {}) {
        return new Promise((resolve, reject) => {
            const form = new FormData();
            for (const [key, value] of Object.entries(fields)) form.append(key, value);
            for (const {file, name, field} of files) form.append(field || 'files', file, name);
            const request = new XMLHttpRequest();
            request.open('POST', url(path));
            request.upload.onprogress = (event) => onProgress(event.loaded);
            request.onerror = () => {
                link.heard(false);
                reject(new ServerError('The server does not answer.', {offline: true}));
            };
            request.onload = () => {
                if (request.status >= 400) reject(errorFrom(request.status, request.responseText));
                else resolve(JSON.parse(request.responseText));
            };
            request.send(form);
        });
    }


    // --- What the page remembers --------------------------------------------------------------------------------------

    function remembered() {
        try {
            return JSON.parse(localStorage.getItem(STORE_KEY)) || {};
        } catch {
            return {};
        }
    }

    function remember(changes) {
        try {
            localStorage.setItem(STORE_KEY, JSON.stringify({...remembered(), ...changes}));
        } catch {
            // Private windows may refuse; the page works without.
        }
    }


    // --- The WebUI around the page ------------------------------------------------------------------------------------

    const outside = () => {
        const app = document.getElementsByTagName('gradio-app')[0];
        return (app && app.shadowRoot) || document;
    };

    function openTab() {
        const tabs = outside().querySelector('#tabs');
        const own = outside().querySelector(`#${TAB_ID}-button`)
            || (tabs && [...tabs.querySelectorAll('button')].find((item) => item.textContent.trim() === 'Train LoRA'));
        if (own) own.click();
    }


    // --- The page -----------------------------------------------------------------------------------------------------

    const PLAN_DELAY_MS = 400;
    const STATUS_EVERY_MS = 5000;                                                          // The model may change, and a dead line is noticed.
    const STATUS_WHILE_WAITING_MS = 2000;                                                  // A run waits for its checkpoint, which may come any moment.
    const PLAN_WHILE_WRONG_MS = 15_000;
    const THEIRS = ['no_name', 'no_pictures', 'name_taken'];                               // Errors that only the user can end, here.
    const HIDDEN_EVERY_MS = 5000;
    const LONGEST_WAIT_MS = 30_000;

    /** The kit that every part gets, with what the parts before it added. */
    function assembleKit() {
        const kit = {h, show, setText, button, iconButton, card, plural, duration, bigNumber, fileSize, bytes, figure, perStep, url, encode, get, post, patch, send, upload, link,
            ServerError, remember, remembered, outside, openTab};
        for (const name of PARTS) Object.assign(kit, window.trainLora.parts[name](kit));
        return kit;
    }

    function createApp() {
        const kit = assembleKit();
        const {feed, planFor, findFreeName, NO_PLAN, toast} = kit;
        let ready = false;
        let planNumber = 0;
        let planTimer = 0;
        let plannedAt = 0;
        let isWrong = false;                                                               // The plan has errors that may end by themselves.
        let runKey = null;
        let pollTimer = 0;
        let polling = false;
        let lastStatus = 0;
        let lastKnown = {};
        let failures = 0;

        const modelDot = h('span.tl-dot', {'aria-hidden': 'true'});
        const modelText = h('span.tl-model-text');
        const modelFacts = h('span.tl-muted');
        const predictsText = h('span');
        const predictsChange = h('button.tl-link', {type: 'button', id: 'tl-predicts', 'aria-haspopup': 'menu', onclick: () => choosePrediction()}, 'change');
        const predicts = h('span.tl-muted.tl-predicts', {hidden: true}, predictsText, ' ', predictsChange);
        const version = h('span.tl-muted.tl-version');
        const asking = h('span.tl-muted.tl-asking', {hidden: true, title: 'News of jobs cannot be sent to this page: a proxy does not pass WebSockets on, or changes the header '
            + 'Host. Nothing is lost. To mend it, let the proxy pass on Upgrade, Connection and Host.'}, 'No live link: this page asks instead');
        const problems = h('div.tl-notice.tl-warn', {hidden: true});
        const connection = h('div.tl-notice.tl-warn', {hidden: true, role: 'status'}, 'Connection lost, trying again.');
        const columns = h('div.tl-columns');

        const settings = kit.createSettings({onChange: () => { tellPictures(); planSoon(); presentModel(); }, onImport: () => kit.openSettingsImport({settings}),
            onExport: () => kit.exportSettings(config())});
        const pictures = kit.createPictures({onChange: () => planSoon(), suggestName: () => settings.value('output_name') || settings.value('trigger_word') || '',
            onWide: (on) => columns.classList.toggle('tl-wide-pictures', on)});
        const generate = kit.createGenerate();
        const tryTag = Object.assign((tag, trigger) => generate.tryTag(tag, trigger), {ready: () => !generate.element.hidden});
        const train = kit.createTrain({config, settings, tryTag, look: () => planSoon(0)});
        const history = kit.createHistory({trainAgain, tryTag, schema: () => settings.schema()});

        const toHistory = h('button.tl-link', {type: 'button', id: 'tl-to-history', onclick: () => history.element.scrollIntoView({block: 'start'})}, 'History');
        columns.append(h('div.tl-main', {}, pictures.element, settings.element, generate.element), h('div.tl-side', {}, train.element));
        const root = h('div.tl-app', {}, h('div.tl-head', {}, h('div.tl-model', {}, modelDot, modelText, modelFacts, predicts),
            h('div.tl-head-side', {}, asking, toHistory, version)), connection, problems, columns, history.element);

        /** The settings that decide what the trainer will see of the pictures. */
        function tellPictures() {
            const values = settings.config();
            pictures.setSettings(Object.fromEntries(['resolution', 'bucket_step', 'enable_bucket', 'trigger_word', 'bucket_min', 'bucket_max', 'bucket_no_upscale', 'max_token_length',
                'caption_lines', 'caption_extension']
                .map((name) => [name, values[name]])));
        }

        function config() {
            const name = pictures.name();
            return name ? {...settings.config(), train_data_dir: name} : settings.config();
        }

        function planSoon(delay = PLAN_DELAY_MS) {
            clearTimeout(planTimer);
            planTimer = setTimeout(() => plan(), delay);
        }

        async function plan() {
            if (!ready || link.away()) return;                                             // It is planned anew when the server is back.
            const number = planNumber += 1;
            plannedAt = Date.now();
            try {
                const wanted = config();
                const answer = {...await planAnyway(wanted), name: wanted.output_name};
                if (number !== planNumber) return;
                train.setPlan(answer);
                settings.setErrors(train.fieldErrors());
                isWrong = answer.errors.some(({code}) => !THEIRS.includes(code));
            } catch (error) {
                if (number !== planNumber) return;
                isWrong = true;
                if (!error.offline) train.setPlan({...NO_PLAN, errors: [{code: error.code, message: error.message}]});
            }
        }

        /** Plan as if the name were no obstacle, and add what is to be said about the name. */
        async function planAnyway(wanted) {
            const named = Boolean(wanted.output_name);
            let answer = await planFor(named ? wanted : {...wanted, output_name: 'untitled', overwrite: true});
            const taken = answer.errors.find(({code}) => code === 'name_taken');
            if (taken) answer = await planFor({...wanted, overwrite: true});
            const about = [];
            if (!pictures.count()) about.push({code: 'no_pictures', field: 'train_data_dir', message: 'Add pictures in step 1.'});
            if (!named) about.push({code: 'no_name', field: 'output_name', message: 'Give the LoRA a name in step 2.'});
            if (taken) about.push(taken);
            const said = about.map(({field}) => field);
            return {...answer, errors: [...about, ...answer.errors.filter(({field}) => !said.includes(field))]};
        }

        /** The run that waits for a checkpoint which is not the one that is loaded, or null. */
        function waitingRun() {
            const run = feed.current();
            return run && run.state === 'paused' && run.waiting_for === 'checkpoint' && run.checkpoint ? run : null;
        }

        /** Say what is loaded, and whether that is what is trained on. */
        function presentModel() {
            const model = lastKnown.model || {trainable: false, reason: 'No model is loaded.'};
            const run = waitingRun();
            const asked = model.family === 'sdxl';                                         // Whose files often do not say what they predict.
            const facts = [FAMILIES[model.family] || model.family, VARIANTS[model.variant] ?? model.variant, !asked && model.prediction_type === 'v_prediction' ? 'v-prediction' : '',
                model.zero_terminal_snr ? 'zero terminal SNR' : '', model.size_px ? `made for ${model.size_px} px` : '', DTYPES[model.dtype] || model.dtype, model.device];
            const away = failures > 0 || link.away();
            const name = (title) => h('strong', {title}, kit.checkpointName(title));
            const words = run ? [...(model.checkpoint ? ['Loaded: ', name(model.checkpoint)] : ['Nothing is loaded']), ' · the run waits for ', name(run.checkpoint)]
                : model.trainable ? ['Trains on ', h('strong', {}, model.checkpoint)] : [model.reason || 'The loaded model cannot be trained.'];
            const key = words.map((word) => word.textContent ?? word).join('');
            root.classList.toggle('tl-untrainable', !model.trainable && !run);
            modelDot.className = `tl-dot${away ? ' tl-away' : run ? ' tl-wait' : model.trainable ? '' : ' tl-off'}`;
            if (modelText.textContent !== key) modelText.replaceChildren(...words);
            setText(modelFacts, model.trainable && !run ? facts.filter(Boolean).join(' · ') : '');
            show(predicts, model.trainable && !run && asked);
            const chosen = settings.value('prediction_type');
            const overruled = chosen && chosen !== 'auto';
            setText(predictsText, `· predicts ${PREDICTS[overruled ? chosen : model.prediction_type] || 'noise'}${overruled ? ', as you chose' : ''}`);
            modelFacts.title = model.sha256 ? `sha256 ${model.sha256}` : '';
        }

        /** What an SDXL checkpoint predicts is not always in its file: here it can be said. */
        function choosePrediction() {
            const choose = (value) => () => settings.set('prediction_type', value);
            const found = PREDICTS[(lastKnown.model || {}).prediction_type] || 'noise';
            kit.openMenu(predictsChange, [{label: 'As the checkpoint says', hint: found, act: choose('auto')}, {label: 'Noise', hint: 'epsilon', act: choose('epsilon')},
                {label: 'v', hint: 'v_prediction', act: choose('v_prediction')}], 'What the model predicts');
        }

        function presentStatus(status) {
            const before = lastKnown.model || {};
            lastKnown = status;
            const model = status.model || {trainable: false, reason: 'No model is loaded.'};
            if (ready && (before.checkpoint !== model.checkpoint || before.trainable !== model.trainable)) planSoon();
            presentModel();
            setText(version, `Train LoRA ${status.version}`);
            problems.replaceChildren(...(status.problems || []).map((text) => h('p', {}, text)));
            show(problems, (status.problems || []).length > 0);
            const size = (model.trainable && model.size_px) || (status.host || {}).default_size_px;
            settings.setModel(model);
            settings.setDefault('resolution', size);
            generate.setSize(size);
            show(generate.element, (status.host || {}).kind === 'standalone');
            train.setModel(model);
        }

        async function load() {
            const status = await get('status');
            const [form, presets, datasets] = await Promise.all([get('settings'), get('presets'), get('datasets'), feed.list()]);
            lastStatus = Date.now();
            settings.build(form, presets);
            presentStatus(status);
            feed.takeStatus(status);
            tellPictures();
            pictures.setDatasets(datasets);
            await chooseDataset(datasets);
            ready = true;
            for (const part of [train, history]) part.present();
            feed.connect();
            await plan();
        }

        async function chooseDataset(datasets) {
            const {dataset} = remembered();
            if (datasets.some(({name}) => name === dataset)) await pictures.choose(dataset);
        }

        async function refreshStatus() {
            if (!failures && Date.now() - lastStatus < (waitingRun() ? STATUS_WHILE_WAITING_MS : STATUS_EVERY_MS)) return;
            lastStatus = Date.now();
            const status = await get('status');
            presentStatus(status);
            feed.takeStatus(status);
        }

        /** Look at the model again at once. */
        function statusNow() {
            lastStatus = 0;
            if (ready) poll();
        }

        /** Fill the form with the settings of a run, under a name that is free, and with its pictures. */
        async function trainAgain(job) {
            try {
                const {train_data_dir: folder, ...values} = job.config;
                const datasets = await get('datasets');
                const dataset = datasets.find(({name, path}) => path === folder || name === folder);
                if (dataset) await pictures.choose(dataset.name);
                settings.take({...values, output_name: await findFreeName(job.name, job.config, {sameFirst: true})});
                settings.element.scrollIntoView({block: 'start'});
                toast(dataset ? `The settings of ${job.name} are filled in.` : `The settings of ${job.name} are filled in; choose its pictures in step 1 (${folder}).`);
            } catch (error) {
                toast(error.message);
            }
        }

        /** A picture from the WebUI's gallery, perhaps before the tab was ever opened. */
        async function receive(files) {
            if (!ready) await load();
            return pictures.receive(files);
        }

        function lost(message = 'Connection lost, trying again.') {
            failures += 1;
            setText(connection, message);
            show(connection, true);
            presentModel();
        }

        /** Another tab of the WebUI may be in front: a running job is still followed, so that its card shows when it ends. */
        const visible = () => !document.hidden && root.isConnected && (root.offsetParent !== null || (ready && train.busy()));
        const wanted = () => visible() || (ready && train.busy() && root.isConnected);

        async function poll() {
            if (polling) return;
            clearTimeout(pollTimer);
            polling = true;
            if (wanted()) await pollOnce();
            polling = false;
            pollSoon();
        }

        /** A server that does not answer is asked rarely: one that is just starting may take a request that comes too early badly. */
        function pollSoon() {
            clearTimeout(pollTimer);
            if (link.away() && !failures) lost();
            pollTimer = setTimeout(poll, failures ? Math.min(LONGEST_WAIT_MS, 1000 * 2 ** failures)
                : document.hidden ? HIDDEN_EVERY_MS : train.busy() && !feed.alive() ? 500 : 1000);
        }

        async function pollOnce() {
            try {
                if (!ready) await load();
                await refreshStatus();
                await feed.poll({now: failures > 0});
                show(asking, feed.blocked());
                if (!document.hidden && root.offsetParent !== null) await pictures.poll();
                if (failures) {
                    failures = 0;
                    show(connection, false);
                    presentModel();
                    planSoon(0);
                } else if (isWrong && Date.now() - plannedAt > PLAN_WHILE_WRONG_MS && !document.hidden && root.offsetParent !== null) planSoon(0);
            } catch (error) {
                if (!(error instanceof ServerError)) console.error('Train LoRA', error);
                lost(error.offline ? undefined : `${error.message} Trying again.`);
            }
        }

        /** The page comes into sight: what it says of the model is looked at again. */
        function pollNow() {
            if (Date.now() - lastStatus > 1000) lastStatus = 0;
            poll();
        }

        /** What changed on disk while another window was in front is shown at once. */
        window.addEventListener('focus', () => {
            if (failures) poll();
            else if (ready && root.offsetParent !== null) {
                pictures.poll(true).catch(() => {});
                planSoon(0);                                                               // A folder may be back.
            }
        });
        window.addEventListener('online', () => { if (failures) poll(); });
        window.addEventListener('offline', () => { feed.drop(); poll(); });
        feed.hear((kind, value) => {
            if (kind === 'ended') planSoon(0);                                             // Its name is taken now, and how long a step takes is known.
            else if (kind === 'alive' && !value) poll();                                   // Go on by asking, at once.
            else if (kind === 'loaded') statusNow();
            else if (kind === 'status' && value.model && !value.version) {
                const other = (lastKnown.model || {}).checkpoint !== value.model.checkpoint;
                presentStatus({...lastKnown, ...value});
                if (other) statusNow();                                                    // With what else depends on the model.
            } else if (kind === 'job' || kind === 'jobs') {
                const run = feed.current();
                const key = run ? `${run.id} ${run.waiting_for || ''} ${run.checkpoint || ''}` : '';
                if (key === runKey) return;
                if (runKey !== null) statusNow();
                runKey = key;
                presentModel();
            }
        });
        link.listen((answers) => {
            if (!answers) feed.drop();
            if (polling) return;                                                           // Seen to when that is done.
            if (!answers) pollSoon();
            else if (failures) poll();
        });
        document.addEventListener('visibilitychange', () => { if (!document.hidden) pollNow(); });
        new IntersectionObserver((entries) => { if (entries.some(({isIntersecting}) => isIntersecting)) pollNow(); }).observe(root);   // The tab is opened.
        return {root, poll, addButtons: () => kit.addGalleryButtons(receive)};
    }


    // --- Mounting -----------------------------------------------------------------------------------------------------

    let app = null;

    /** Put the page into its place, again if gradio has drawn that place anew. */
    function mount() {
        if (!PARTS.every((name) => window.trainLora.parts[name])) return;
        const place = outside().querySelector(`#${APP_ID}`);
        if (!place) return;
        if (app) app.addButtons();
        if (app && app.root.parentElement === place) return;
        const first = !app;
        app = app || createApp();
        place.replaceChildren(app.root);
        app.addButtons();
        if (first) app.poll();
    }

    function watch() {
        mount();
        new MutationObserver(mount).observe(document.body, {childList: true, subtree: true});
    }

    window.trainLora = Object.assign(window.trainLora || {parts: {}}, {open: openTab});
    if (typeof window.onUiLoaded === 'function') window.onUiLoaded(watch);
    else if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', watch);
    else watch();
})();
