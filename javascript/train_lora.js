/* The live parts of the tab Train LoRA: this file has the kit, settings, training and the page; its neighbours train_lora_*.js the pictures.
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
    const PARTS = ['widgets', 'dataset', 'grid', 'tags', 'bulk', 'detail', 'importing', 'captioning', 'pictures', 'gallery'];
    const RUNNING = ['queued', 'preparing', 'training', 'saving'];


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

    function ago(moment) {
        const date = typeof moment === 'number' ? new Date(moment * 1000) : new Date(moment);
        const seconds = (Date.now() - date.getTime()) / 1000;
        if (!Number.isFinite(seconds)) return '';
        if (seconds < 60) return 'just now';
        if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
        if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
        return date.toLocaleDateString();
    }

    const FAMILIES = {sd1: 'SD1', sd2: 'SD2', sdxl: 'SDXL'};
    const DTYPES = {float32: 'fp32', float16: 'fp16', bfloat16: 'bf16', 'torch.float32': 'fp32', 'torch.float16': 'fp16', 'torch.bfloat16': 'bf16'};
    const STATES = {queued: 'Waiting', preparing: 'Preparing', training: 'Training', saving: 'Saving', paused: 'Paused', finished: 'Finished', stopped: 'Stopped',
        failed: 'Failed', interrupted: 'Interrupted'};


    // --- Server -------------------------------------------------------------------------------------------------------

    /** An answer that is an error (`code`, `field`, `conflicts`), or no answer at all (`offline`). */
    class ServerError extends Error {
        constructor(message, {code = '', field = null, status = 0, offline = false, conflicts = []} = {}) {
            super(message);
            Object.assign(this, {code, field, status, offline, conflicts});
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


    // --- Step 2: settings ---------------------------------------------------------------------------------------------

    const HIDDEN_SETTINGS = new Set(['train_data_dir', 'base_model', 'task_type', 'overwrite']);
    const WIDE_SETTINGS = new Set(['output_dir', 'logging_dir', 'metadata_path']);
    const GROUPS = [['advanced', 'Learning'], ['pictures', 'Pictures'], ['output', 'Output']];
    const GROUP_OF = {repeats: 'pictures', enable_bucket: 'pictures', bucket_step: 'pictures', mirror: 'pictures', random_crop: 'pictures', save_steps: 'output',
        save_precision: 'output', mixed_precision: 'advanced'};

    function createSettings({onChange}) {
        let schema = new Map();
        let presets = [];
        let preset = '';
        let changes = {};
        const fields = new Map();

        const identity = h('div.tl-fields.tl-identity');
        const presetBox = h('div.tl-presets', {role: 'radiogroup', 'aria-labelledby': 'tl-presets-label'});
        const main = h('div.tl-fields');
        const moreNote = h('span.tl-muted');
        const moreBody = h('div.tl-more-body');
        const more = h('details.tl-more', {}, h('summary', {}, h('span', {}, 'More settings'), moreNote), moreBody);
        const changedNote = h('span.tl-muted');
        const resetAll = iconButton('Reset to preset', 'Undo every change to the preset', () => usePreset(preset));
        const changedLine = h('span.tl-changed', {hidden: true}, changedNote, resetAll);
        const presetHead = h('div.tl-preset-head', {}, h('span.tl-label', {id: 'tl-presets-label'}, 'Preset'), changedLine);
        const element = card(2, 'Settings', identity, presetHead, presetBox, main, more);

        const presetValues = () => (presets.find(({name}) => name === preset) || {settings: {}}).settings;
        const baseline = (name) => (name in presetValues() ? presetValues()[name] : schema.get(name).default);
        const value = (name) => (name in changes ? changes[name] : baseline(name));

        function build(entries, choices) {
            const kept = remembered();
            schema = new Map(entries.map((entry) => [entry.name, {...entry}]));
            presets = choices;
            preset = presets.some(({name}) => name === kept.preset) ? kept.preset : (presets[0] || {name: ''}).name;
            changes = Object.fromEntries(Object.entries(kept.changes || {}).filter(([name]) => schema.has(name)));
            fields.clear();
            const shown = entries.filter(({name, choices: options}) => !HIDDEN_SETTINGS.has(name) && !(options && options.length < 2));
            for (const entry of shown) {
                fields.set(entry.name, createField(entry, {onInput: (text) => change(entry.name, text), onReset: () => change(entry.name, undefined)}));
            }
            const first = ['output_name', 'trigger_word'].filter((name) => fields.has(name));
            identity.replaceChildren(...first.map((name) => fields.get(name).element));
            main.replaceChildren(...shown.filter(({group, name}) => group === 'main' && !first.includes(name)).map(({name}) => fields.get(name).element));
            const rest = shown.filter(({group}) => group !== 'main');
            moreBody.replaceChildren(...GROUPS.flatMap(([group, title]) => groupOf(title, rest.filter((entry) => (GROUP_OF[entry.name] || entry.group) === group))));
            buildPresets();
            presentAll();
        }

        /** Let the model decide a default, as the resolution. */
        function setDefault(name, text) {
            if (!schema.has(name) || !text || schema.get(name).default === text) return;
            schema.get(name).default = text;
            if (String(changes[name]) === String(text)) delete changes[name];
            presentAll();
            onChange();
        }

        function groupOf(title, entries) {
            if (!entries.length) return [];
            const box = (list) => (list.length ? [h('div.tl-fields', {}, ...list.map(({name}) => fields.get(name).element))] : []);
            return [h('h4.tl-group', {}, title), ...box(entries.filter(({type}) => type !== 'bool')), ...box(entries.filter(({type}) => type === 'bool'))];
        }

        function buildPresets() {
            presetBox.replaceChildren(...presets.map(({name, title, help}) => h('label.tl-preset', {},
                h('input', {type: 'radio', name: 'tl-preset', value: name, checked: name === preset, onchange: () => usePreset(name)}),
                h('span.tl-preset-title', {}, title), h('span.tl-help', {}, help || ''))));
            for (const part of [presetHead, presetBox]) show(part, presets.length > 0);
        }

        /** Take a preset as it is: every setting that some preset decides goes back to this one's value; names and the like stay. */
        function usePreset(name) {
            preset = name;
            for (const {settings} of presets) for (const key of Object.keys(settings)) delete changes[key];
            presentAll();
            changed();
        }

        function change(name, text) {
            if (text === undefined || String(text) === String(baseline(name))) delete changes[name];
            else changes[name] = text;
            present(name);
            presentChanged();
            if (name === 'max_train_steps') presentEpochs();
            changed();
        }

        function present(name) {
            const field = fields.get(name);
            if (!field) return;
            field.setValue(value(name));
            field.setChanged(name in changes && !['output_name', 'trigger_word'].includes(name), baseline(name));
        }

        function presentAll() {
            for (const name of fields.keys()) present(name);
            presentChanged();
            presentEpochs();
        }

        function presentChanged() {
            const own = Object.keys(changes).filter((name) => fields.has(name) && !['output_name', 'trigger_word'].includes(name));
            const hidden = own.filter((name) => schema.get(name).group !== 'main');
            setText(changedNote, `${plural(own.length, 'setting')} changed`);
            show(resetAll, own.some((name) => presets.some(({settings}) => name in settings)));
            show(changedLine, own.length > 0);
            setText(moreNote, hidden.length ? `${hidden.length} changed` : '');
        }

        function presentEpochs() {
            const steps = Number(value('max_train_steps'));
            if (fields.has('epochs')) fields.get('epochs').setNote(steps > 0 ? `Not used: the run is set to ${plural(steps, 'step')}.` : '');
        }

        function changed() {
            remember({preset, changes});
            onChange();
        }

        /** What a run is told: everything shown, as typed; the server says what is wrong with it. */
        function config() {
            const values = {};
            for (const [name, {type}] of schema) {
                if (!fields.has(name) && !(name in presetValues())) continue;
                const text = value(name);
                values[name] = type === 'str' || typeof text !== 'string' || text.trim() === '' || Number.isNaN(Number(text)) ? text : Number(text);
            }
            return values;
        }

        /** Show the server's errors at their fields. A name not given yet is no mistake: the Train button says it. */
        function setErrors(errors) {
            for (const [name, field] of fields) {
                const error = errors.find((item) => item.field === name);
                const untouched = name === 'output_name' && !value(name);
                field.setError(error && !untouched ? error.message : '');
                if (error && !untouched && schema.get(name).group !== 'main') more.open = true;
            }
        }

        return {element, build, config, setDefault, setErrors, value: (name) => (schema.has(name) ? value(name) : undefined),
            set: (name, text) => schema.has(name) && change(name, text)};
    }

    /** A labelled control for one entry of a schema, as the server describes settings and the options of captioners. */
    function createField(entry, {onInput, onReset, idPrefix = 'tl-setting'}) {
        const id = `${idPrefix}-${entry.name}`;
        const helpId = `${id}-help`;
        const errorId = `${id}-error`;
        const check = entry.type === 'bool';
        const described = {id, 'aria-describedby': `${helpId} ${errorId}`};
        let control;
        if (check) control = h('input.tl-check', {...described, type: 'checkbox', onchange: () => onInput(control.checked)});
        else if (entry.choices) control = h('select.tl-input', {...described, onchange: () => onInput(control.value)}, ...entry.choices.map(option));
        else control = textInput(entry, described, onInput);

        const reset = h('button.tl-reset', {type: 'button', onclick: () => { onReset(); control.focus(); }}, '↺');
        const label = h('label.tl-label', {htmlFor: id}, entry.title);
        const help = h('p.tl-help', {id: helpId}, `${entry.help || ''} `, h('span.tl-range', {}, rangeOf(entry)));
        const note = h('p.tl-help.tl-note', {hidden: true});
        const error = h('p.tl-error', {id: errorId, hidden: true, role: 'alert'});
        const unit = entry.unit ? h('span.tl-unit', {'aria-hidden': 'true'}, entry.unit) : null;
        const head = check ? h('div.tl-label-line', {}, control, label, reset) : h('div.tl-label-line', {}, label, reset);
        const element = h('div.tl-field', {}, head, check ? null : h('div.tl-control', {}, control, unit), note, help, error);
        element.classList.toggle('tl-wide', WIDE_SETTINGS.has(entry.name));
        element.classList.toggle('tl-has-unit', Boolean(unit));

        return {
            element,
            setValue(value) {
                if (check) control.checked = value === true || value === 'true';
                else if (document.activeElement !== control) control.value = String(value);   // What is being typed stays as typed.
            },
            setChanged(changed, before) {
                element.classList.toggle('tl-is-changed', changed);
                reset.title = `Back to ${before === '' ? 'empty' : before}`;
                reset.setAttribute('aria-label', `${entry.title}: ${reset.title}`);
            },
            setNote(text) {
                setText(note, text);
                show(note, Boolean(text));
                show(help, !text);
                element.classList.toggle('tl-unused', Boolean(text));
            },
            setError(text) {
                setText(error, text);
                show(error, Boolean(text));
                control.setAttribute('aria-invalid', text ? 'true' : 'false');
            },
        };
    }

    /** A choice is a word, or {value, title, help}. */
    const option = (choice) => (typeof choice === 'object' ? h('option', {value: choice.value, title: choice.help || ''}, choice.title || choice.value)
        : h('option', {value: choice}, choice));

    function textInput(entry, described, onInput) {
        const numeric = entry.type === 'int' || entry.type === 'float';
        const input = h('input.tl-input', {...described, type: 'text', autocomplete: 'off', spellcheck: false, inputMode: numeric ? 'decimal' : 'text',
            oninput: () => onInput(input.value.trim())});
        if (entry.type === 'int') input.addEventListener('keydown', (event) => {
            const direction = {ArrowUp: 1, ArrowDown: -1}[event.key];
            const number = Number(input.value);
            if (!direction || input.value.trim() === '' || !Number.isInteger(number)) return;
            event.preventDefault();
            const wide = entry.name === 'resolution' ? 64 : 1;
            input.value = String(Math.min(entry.maximum ?? Infinity, Math.max(entry.minimum ?? -Infinity, number + direction * wide)));
            onInput(input.value);
        });
        return input;
    }

    function rangeOf({minimum, maximum, type}) {
        if (minimum === null || minimum === undefined || type === 'bool') return '';
        const words = (number) => (Math.abs(number) >= 1e4 ? number.toLocaleString('en') : String(number));
        return `(${words(minimum)} to ${words(maximum)})`;
    }


    // --- The loss curve -----------------------------------------------------------------------------------------------

    const CHART_HEIGHT_PX = 190;
    const MARGIN = {left: 44, right: 10, top: 10, bottom: 22};

    function createChart() {
        let rows = [];
        let total = 0;
        let cursor = null;

        const readout = h('span.tl-readout');
        const legend = h('span.tl-legend', {'aria-hidden': 'true'}, h('i.tl-key.tl-strong'), 'average', h('i.tl-key'), 'each step');
        const canvas = h('canvas.tl-canvas', {tabIndex: 0, role: 'img'});
        const empty = h('p.tl-chart-empty', {}, 'The loss curve appears here with the first steps.');
        const element = h('div.tl-chart', {}, h('div.tl-chart-head', {}, h('span.tl-label', {}, 'Loss'), legend, readout), h('div.tl-plot', {}, canvas, empty));

        const pointAt = (clientX) => {
            const box = canvas.getBoundingClientRect();
            const step = (clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right) * lastStep();
            return nearest(rows, step);
        };
        canvas.addEventListener('pointermove', (event) => moveTo(rows.length ? pointAt(event.clientX) : null));
        canvas.addEventListener('pointerleave', () => moveTo(null));
        canvas.addEventListener('blur', () => moveTo(null));
        canvas.addEventListener('keydown', (event) => {
            const direction = {ArrowLeft: -1, ArrowRight: 1}[event.key];
            if (!direction || !rows.length) return;
            event.preventDefault();
            event.stopPropagation();
            const stride = Math.max(1, Math.round(rows.length / 100));
            moveTo(Math.min(rows.length - 1, Math.max(0, (cursor === null ? rows.length - 1 : cursor) + direction * stride)));
        });
        new ResizeObserver(() => draw()).observe(canvas);
        new MutationObserver(() => draw()).observe(document.body, {attributes: true, attributeFilter: ['class']});

        const lastStep = () => Math.max(total, rows.length ? rows[rows.length - 1].step : 0, 1);

        function moveTo(index) {
            cursor = index;
            draw();
        }

        function reset(steps = 0) {
            [rows, total, cursor] = [[], steps, null];
            draw();
        }

        function append(more, steps) {
            total = steps || total;
            const last = rows.length ? rows[rows.length - 1].step : 0;
            for (const row of more.filter(({step}) => step > last)) {
                const previous = rows.length ? rows[rows.length - 1].average : row.loss;
                const average = Number.isFinite(row.loss_average) ? row.loss_average : previous * 0.97 + row.loss * 0.03;
                if (Number.isFinite(row.loss)) rows.push({step: row.step, loss: row.loss, average});
            }
            draw();
        }

        function describe() {
            const row = rows[cursor === null ? rows.length - 1 : cursor];
            setText(readout, row && cursor !== null ? `Step ${row.step} · ${figure(row.loss)} · average ${figure(row.average)}` : '');
            show(legend, cursor === null && rows.length > 0);
            show(empty, !rows.length);
            canvas.setAttribute('aria-label', rows.length > 1
                ? `Loss curve: average ${figure(rows[0].average)} at step ${rows[0].step}, ${figure(rows[rows.length - 1].average)} at step ${rows[rows.length - 1].step}`
                : 'Loss curve, empty');
        }

        function draw() {
            describe();
            const width = canvas.clientWidth;
            if (!width) return;
            const ratio = window.devicePixelRatio || 1;
            canvas.width = Math.round(width * ratio);
            canvas.height = Math.round(CHART_HEIGHT_PX * ratio);
            const pen = canvas.getContext('2d');
            pen.scale(ratio, ratio);
            paintChart(pen, {rows, width, total: lastStep(), cursor, colours: coloursOf(canvas)});
        }

        return {element, reset, append, last: () => (rows.length ? rows[rows.length - 1].step : 0)};
    }

    function nearest(rows, step) {
        let [low, high] = [0, rows.length - 1];
        while (low < high) {
            const middle = (low + high) >> 1;
            if (rows[middle].step < step) low = middle + 1;
            else high = middle;
        }
        return low > 0 && step - rows[low - 1].step < rows[low].step - step ? low - 1 : low;
    }

    function coloursOf(element) {
        const style = getComputedStyle(element);
        const of = (name) => style.getPropertyValue(name).trim();
        return {strong: of('--tl-accent'), faint: of('--tl-curve-faint'), line: of('--tl-border'), text: of('--tl-muted'), font: `11px ${style.fontFamily}`};
    }

    /** The loss values that the axis covers: all of the average, and the raw values without the few wildest. */
    function lossRange(rows) {
        const raw = rows.map(({loss}) => loss).sort((a, b) => a - b);
        const averages = rows.map(({average}) => average);
        const at = (share) => raw[Math.min(raw.length - 1, Math.floor(share * raw.length))];
        let low = Math.min(at(0.005), ...extremes(averages));
        let high = Math.max(at(0.985), ...extremes(averages));
        if (high - low < 1e-9) [low, high] = [low - 0.01, high + 0.01];
        const room = (high - low) * 0.06;
        return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
    }

    const extremes = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

    function ticks(low, high, count) {
        const rough = (high - low) / count;
        const size = 10 ** Math.floor(Math.log10(rough));
        const stride = [1, 2, 5, 10].map((factor) => factor * size).find((candidate) => candidate >= rough);
        const found = [];
        for (let tick = Math.ceil(low / stride) * stride; tick <= high + stride * 1e-6; tick += stride) found.push(tick);
        return {stride, found};
    }

    function paintChart(pen, {rows, width, total, cursor, colours}) {
        if (!rows.length) return;
        const [low, high] = lossRange(rows);
        const plot = {left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: CHART_HEIGHT_PX - MARGIN.bottom};
        const x = (step) => plot.left + (plot.right - plot.left) * step / total;
        const y = (loss) => plot.bottom - (plot.bottom - plot.top) * (loss - low) / (high - low);
        paintAxes(pen, {plot, x, y, low, high, total, colours});
        pen.save();
        pen.beginPath();
        pen.rect(plot.left, plot.top, plot.right - plot.left, plot.bottom - plot.top);
        pen.clip();
        const every = Math.max(1, Math.floor(rows.length / (2 * (plot.right - plot.left))));
        trace(pen, rows, every, (row) => [x(row.step), y(row.loss)], colours.faint, 1);
        trace(pen, rows, every, (row) => [x(row.step), y(row.average)], colours.strong, 2);
        pen.restore();
        if (cursor !== null && rows[cursor]) paintCursor(pen, {plot, at: x(rows[cursor].step), height: y(rows[cursor].average), colours});
    }

    function paintAxes(pen, {plot, x, y, low, high, total, colours}) {
        pen.font = colours.font;
        pen.fillStyle = colours.text;
        pen.strokeStyle = colours.line;
        pen.lineWidth = 1;
        pen.textBaseline = 'middle';
        pen.textAlign = 'right';
        const vertical = ticks(low, high, 5);
        const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(vertical.stride) + 1e-9)));
        for (const tick of vertical.found) {
            const height = Math.round(y(tick)) + 0.5;
            pen.fillText(tick.toFixed(digits), plot.left - 8, height);
            pen.beginPath();
            pen.moveTo(plot.left, height);
            pen.lineTo(plot.right, height);
            pen.stroke();
        }
        pen.textBaseline = 'top';
        const horizontal = ticks(0, total, Math.max(2, Math.floor((plot.right - plot.left) / 90))).found.filter((tick) => Number.isInteger(tick));
        for (const tick of horizontal) {
            const label = tick.toLocaleString('en');
            const edge = x(tick) + pen.measureText(label).width / 2 > plot.right;
            pen.textAlign = edge ? 'right' : 'center';
            pen.fillText(label, edge ? plot.right : x(tick), plot.bottom + 7);
        }
    }

    function trace(pen, rows, every, place, colour, thickness) {
        pen.strokeStyle = colour;
        pen.lineWidth = thickness;
        pen.lineJoin = 'round';
        pen.beginPath();
        rows.forEach((row, index) => {
            if (index % every && index !== rows.length - 1) return;
            const [left, top] = place(row);
            if (index) pen.lineTo(left, top);
            else pen.moveTo(left, top);
        });
        pen.stroke();
    }

    function paintCursor(pen, {plot, at, height, colours}) {
        pen.strokeStyle = colours.text;
        pen.lineWidth = 1;
        pen.beginPath();
        pen.moveTo(Math.round(at) + 0.5, plot.top);
        pen.lineTo(Math.round(at) + 0.5, plot.bottom);
        pen.stroke();
        pen.fillStyle = colours.strong;
        pen.beginPath();
        pen.arc(at, Math.min(plot.bottom, Math.max(plot.top, height)), 3.5, 0, 2 * Math.PI);
        pen.fill();
    }


    // --- The WebUI around the page ------------------------------------------------------------------------------------

    const outside = () => {
        const app = document.getElementsByTagName('gradio-app')[0];
        return (app && app.shadowRoot) || document;
    };

    const promptBox = () => outside().querySelector('#txt2img_prompt textarea');

    /** Let the WebUI's Lora cards show a file that was just written. */
    function refreshCards() {
        for (const tab of ['txt2img', 'img2img']) {
            const refresh = outside().querySelector(`#${tab}_lora_extra_refresh_internal`);
            if (refresh) refresh.click();
        }
    }

    /** Put a tag (and the trigger word) into txt2img's prompt, unless they are there, and go there. */
    function sendToPrompt(tag, trigger) {
        const box = promptBox();
        const words = [trigger, tag].filter((word) => word && !box.value.includes(word));
        if (words.length) {
            box.value = [box.value.replace(/[\s,]+$/, ''), words.join(' ')].filter(Boolean).join(', ');
            box.dispatchEvent(new Event('input', {bubbles: true}));
        }
        const tabs = outside().querySelector('#tabs');
        if (typeof window.switch_to_txt2img === 'function') window.switch_to_txt2img();
        else if (tabs) tabs.querySelector('button').click();
        box.focus();
    }

    function openTab() {
        const tabs = outside().querySelector('#tabs');
        const own = outside().querySelector(`#${TAB_ID}-button`)
            || (tabs && [...tabs.querySelectorAll('button')].find((item) => item.textContent.trim() === 'Train LoRA'));
        if (own) own.click();
    }

    async function copy(text) {
        if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
        const box = h('textarea', {value: text});
        document.body.append(box);
        box.select();
        document.execCommand('copy');
        box.remove();
        return undefined;
    }


    // --- Step 3: train ------------------------------------------------------------------------------------------------

    function createTrain({config, settings, tryTag}) {
        let model = null;
        let plan = null;
        let job = null;
        let starting = false;
        let history = [];
        let askedName = '';
        let freeName = '';
        let announced = '';
        let elsewhere = '';

        const planMain = h('p.tl-plan-main');
        const planMore = h('p.tl-muted');
        const planWarnings = h('ul.tl-list.tl-warn-list', {hidden: true});
        const planBox = h('div.tl-plan', {}, planMain, planMore, planWarnings);

        const train = h('button.tl-button.tl-primary.tl-large', {type: 'button', id: 'tl-train', onclick: () => press()}, 'Train');
        const stop = h('button.tl-button.tl-large', {type: 'button', id: 'tl-stop', hidden: true, onclick: () => halt()}, 'Stop');
        const reasons = h('ul.tl-reasons', {id: 'tl-reasons'});
        train.setAttribute('aria-describedby', 'tl-reasons');

        const takenText = h('p');
        const replace = button('Replace it', () => begin({overwrite: true}));
        const rename = button('Save under another name', () => saveAs());
        const takenBox = h('div.tl-notice', {hidden: true, role: 'group', 'aria-label': 'The name is taken'}, takenText,
            h('div.tl-actions', {}, replace, rename, iconButton('Cancel', 'Change nothing', () => { show(takenBox, false); train.focus(); })));
        const startError = h('p.tl-error', {role: 'alert', hidden: true});

        const jobTitle = h('h4.tl-job-title');
        const jobState = h('span.tl-state');
        const fill = h('div.tl-bar-fill');
        const bar = h('div.tl-bar', {role: 'progressbar', 'aria-valuemin': '0', 'aria-valuemax': '100', 'aria-label': 'Training progress'}, fill);
        const stage = h('p.tl-stage');
        const figures = {step: h('dd'), loss: h('dd'), left: h('dd'), speed: h('dd')};
        const stats = h('dl.tl-stats', {}, ...[['Step', 'step'], ['Loss', 'loss'], ['Time left', 'left'], ['Per step', 'speed']].map(([name, key]) =>
            h('div', {}, h('dt', {}, name), figures[key])));
        const live = h('p.tl-hidden', {'aria-live': 'polite', role: 'status'});
        const chart = createChart();

        const tag = h('code.tl-tag');
        const copyButton = button('Copy', async () => {
            await copy(tag.textContent);
            setText(copyButton, 'Copied');
            setTimeout(() => setText(copyButton, 'Copy'), 1500);
        });
        const sendButton = button('Send to txt2img', () => sendToPrompt(tag.textContent, (job.config || {}).trigger_word), 'primary');
        const tryButton = button('Try it', () => tryTag(tag.textContent, (job.config || {}).trigger_word), 'primary');
        const file = h('p.tl-path.tl-wrap');
        const resultNote = h('p');
        const result = h('div.tl-notice.tl-good', {hidden: true}, resultNote, h('div.tl-tag-line', {}, tag, copyButton),
            h('div.tl-actions', {}, sendButton, tryButton), file);
        const failureTitle = h('strong');
        const failureText = h('p');
        const failure = h('div.tl-notice.tl-bad', {hidden: true, role: 'alert'}, failureTitle, failureText);
        const jobBox = h('div.tl-job', {hidden: true}, h('div.tl-job-head', {}, jobTitle, jobState), bar, stage, stats, failure, result, chart.element);

        const recentList = h('ul.tl-recent');
        const recent = h('div.tl-recent-box', {hidden: true}, h('h4.tl-group', {}, 'Last runs'), recentList);

        const element = card(3, 'Train', planBox, h('div.tl-train-line', {}, train, stop), reasons, takenBox, startError, jobBox, live, recent);

        const running = () => job !== null && RUNNING.includes(job.state);

        function setModel(value) {
            model = value;
            presentButton();
        }

        /** Something else that uses the machine, as a captioner: no training until it has ended. */
        function setElsewhere(reason) {
            if (reason === elsewhere) return;
            elsewhere = reason;
            presentButton();
        }

        function setPlan(value) {
            plan = value;
            if (settings.value('output_name') !== askedName) show(takenBox, false);
            presentPlan();
            presentButton();
        }

        function presentPlan() {
            const good = plan && plan.steps > 0 && plan.pictures > 0;
            const time = good && duration(plan.estimated_seconds);
            setText(planMain, good ? [plural(plan.steps, 'step'), time && `about ${time}`].filter(Boolean).join(' · ') : 'Nothing planned yet');
            planMain.classList.toggle('tl-muted', !good);
            setText(planMore, good ? [plural(plan.pictures, 'picture'), plural(plan.buckets.length, 'bucket'),
                plan.trainable_parameters && `${bigNumber(plan.trainable_parameters)} trainable parameters`,
                plan.estimated_memory_bytes && `${bytes(plan.estimated_memory_bytes)} more memory`].filter(Boolean).join(' · ') : '');
            planMore.title = good ? plan.buckets.map((bucket) => `${bucket.width} × ${bucket.height}: ${plural(bucket.pictures, 'picture')}`).join('\n') : '';
            const warnings = (good && plan.warnings) || [];
            planWarnings.replaceChildren(...warnings.map((text) => h('li', {}, text)));
            show(planWarnings, warnings.length > 0);
        }

        const errors = () => (plan ? plan.errors : []);
        /** Errors that keep the run from starting; a taken name is none, it is asked about. */
        const blocking = () => errors().filter(({code}) => code !== 'name_taken');

        function presentButton() {
            const busy = starting || running();
            const found = model && !model.trainable ? [model.reason || 'The loaded model cannot be trained.'] : blocking().map(({message}) => message);
            const obstacles = elsewhere ? [elsewhere, ...found] : found;
            train.disabled = busy || !model || !plan || obstacles.length > 0;
            setText(train, starting ? 'Starting …' : running() ? 'Training …' : 'Train');
            reasons.replaceChildren(...(busy ? [] : obstacles).map((text) => h('li', {}, text)));
            show(reasons, !busy && obstacles.length > 0);
            show(stop, running());
            stop.disabled = running() && Boolean(job.stopping);
            setText(stop, job && job.stopping ? 'Stopping …' : 'Stop');
            if (busy) show(takenBox, false);
        }

        function press() {
            const taken = errors().find(({code}) => code === 'name_taken');
            if (taken) return ask(taken.message);
            return begin({});
        }

        async function ask(message) {
            askedName = settings.value('output_name');
            setText(takenText, message);
            setText(rename, 'Save under another name');
            rename.disabled = true;
            show(takenBox, true);
            replace.focus();
            freeName = await findFreeName(settings.value('output_name'));
            setText(rename, `Save as ${freeName}`);
            rename.disabled = false;
        }

        async function findFreeName(name) {
            const [, base, number] = /^(.*?)(?:-(\d+))?$/.exec(name);
            for (let next = Number(number || 1) + 1; next < 100; next += 1) {
                const candidate = `${base}-${next}`;
                const answer = await planFor({...config(), output_name: candidate}).catch(() => null);
                if (!answer || !answer.errors.some(({code}) => code === 'name_taken')) return candidate;
            }
            return `${base}-${Date.now()}`;
        }

        function saveAs() {
            settings.set('output_name', freeName);
            begin({output_name: freeName});
        }

        async function begin(extra) {
            starting = true;
            show(takenBox, false);
            show(startError, false);
            presentButton();
            try {
                const {id} = await post('jobs', {config: {...config(), ...extra}});
                await follow(await get(`jobs/${encode(id)}`));
            } catch (error) {
                if (error.code === 'name_taken') ask(error.message);
                else {
                    setText(startError, error.message);
                    show(startError, true);
                    if (error.field) settings.setErrors([{field: error.field, message: error.message}]);
                }
            } finally {
                starting = false;
                presentButton();
            }
        }

        async function halt() {
            job.stopping = true;
            presentButton();
            try {
                await post(`jobs/${encode(job.id)}/stop`);
            } catch (error) {
                job.stopping = false;
                setText(startError, error.message);
                show(startError, true);
            }
        }

        /** Show a job, running or not, from its beginning. */
        async function follow(next) {
            const other = !job || job.id !== next.id;
            if (other) {
                chart.reset(next.total_steps);
                remember({job: next.id});
            }
            present(next);
            if (other) await readMetrics(next);
            presentHistory();
        }

        async function readMetrics({id, total_steps: steps}) {
            const rows = await get(`jobs/${encode(id)}/metrics?since=${chart.last()}`);
            if (job.id === id) chart.append(rows, steps);                                  // Another job may have been chosen meanwhile.
        }

        /** Ask how the followed job is doing; returns true once, when it has come to an end. */
        async function refresh() {
            const next = await get(`jobs/${encode(job.id)}`);
            await readMetrics(next);
            if (job.id !== next.id) return false;
            const ended = running() && !RUNNING.includes(next.state);
            present(next);
            if (ended) await readHistory();
            if (ended && next.output_file) refreshCards();
            return ended;
        }

        function present(next) {
            job = {...next, stopping: RUNNING.includes(next.state) && Boolean(next.stopping || (job && job.id === next.id && job.stopping))};
            const stageNow = RUNNING.includes(job.state) && job.stage ? job.stage : job.state;
            const share = job.fraction ?? (job.total_steps ? (job.step || 0) / job.total_steps : 0);
            const vague = RUNNING.includes(job.state) && (job.fraction === null || job.fraction === undefined) && !job.step;
            show(jobBox, true);
            setText(jobTitle, job.name || 'LoRA');
            setText(jobState, job.stopping ? 'Stopping' : STATES[stageNow] || stageNow);
            jobState.className = `tl-state tl-is-${stageNow}`;
            bar.classList.toggle('tl-vague', vague);
            fill.style.width = `${Math.round(1000 * (job.state === 'finished' ? 1 : share)) / 10}%`;
            bar.classList.toggle('tl-failed', job.state === 'failed');
            bar.setAttribute('aria-valuenow', String(Math.round(100 * share)));
            setText(stage, job.message && job.message !== STATES[stageNow] ? job.message : job.epoch ? `Epoch ${job.epoch}` : '');
            show(stage, RUNNING.includes(job.state));
            setText(figures.step, job.total_steps ? `${(job.step || 0).toLocaleString('en')} of ${job.total_steps.toLocaleString('en')}` : '–');
            setText(figures.loss, figure(job.loss_average ?? job.loss));
            setText(figures.left, RUNNING.includes(job.state) ? duration(job.eta_seconds) || '–' : '–');
            setText(figures.speed, perStep(job.seconds_per_step));
            presentOutcome();
            presentButton();
            announce();
        }

        function presentOutcome() {
            const done = ['finished', 'stopped'].includes(job.state) && Boolean(job.output_file);
            setText(failureTitle, !job.step ? `${STATES[job.state]} before the first step`
                : `${STATES[job.state]} at step ${job.step}${job.total_steps ? ` of ${job.total_steps}` : ''}`);
            setText(failureText, job.error || job.message || 'The log says more.');
            show(failure, ['failed', 'interrupted'].includes(job.state));
            const trigger = (job.config || {}).trigger_word;
            const call = trigger ? `Write “${trigger}” and this tag in a prompt:` : 'Write this tag in a prompt:';
            const stopped = done ? `Stopped at step ${job.step}; what it had learned by then is saved. ${call}` : 'Stopped before the first step; nothing was saved.';
            setText(resultNote, job.state === 'stopped' ? stopped : call);
            setText(tag, job.lora_tag || '');
            setText(file, job.output_file || '');
            show(tag.parentElement, Boolean(job.lora_tag));
            show(sendButton, Boolean(job.lora_tag && promptBox()));
            show(tryButton, Boolean(job.lora_tag && tryTag && tryTag.ready()));
            show(result, done || job.state === 'stopped');
        }

        /** Tell screen readers about stages and tenths, not about every step. */
        function announce() {
            const tenth = Math.floor(10 * (job.fraction || 0)) * 10;
            const words = running() ? `${STATES[job.state]}, ${tenth} percent` : `${STATES[job.state] || job.state}. ${job.error || ''}`;
            if (words !== announced) setText(live, announced = words);
        }

        async function readHistory() {
            history = (await get('jobs?kind=training')).filter(isTraining).slice(0, 6);
            presentHistory();
        }

        function presentHistory() {
            recentList.replaceChildren(...history.map((item) => h('li', {}, h('button.tl-run', {type: 'button', onclick: () => pick(item),
                'aria-current': job && item.id === job.id ? 'true' : 'false', title: item.error || item.output_file || ''},
            h('span.tl-run-name', {}, item.name || item.id), h(`span.tl-state.tl-is-${item.state}`, {}, STATES[item.state] || item.state),
            h('span.tl-muted', {}, stepsOf(item)),
            h('span.tl-muted', {}, ago(item.created_at))))));
            show(recent, history.length > 0);
        }

        async function pick(item) {
            if (running()) return;
            await follow(await get(`jobs/${encode(item.id)}`));
        }

        return {element, setModel, setPlan, setElsewhere, follow, refresh, readHistory, running, current: () => job, history: () => history};
    }

    const isTraining = ({kind}) => !kind || kind === 'training';

    function stepsOf({state, step, total_steps: total}) {
        if (!total) return step ? plural(step, 'step') : '';
        return state === 'finished' ? plural(total, 'step') : `${step || 0} of ${total}`;
    }

    const NO_PLAN = {pictures: 0, buckets: [], steps: 0, trainable_parameters: null, warnings: [], errors: []};

    /** Ask for a plan. A config that the server refuses outright is a plan with that one error. */
    async function planFor(config) {
        try {
            return {...NO_PLAN, ...await post('plan', {config})};
        } catch (error) {
            if (error.offline || error.status >= 500) throw error;
            return {...NO_PLAN, errors: [{code: error.code, field: error.field, message: error.message}]};
        }
    }


    // --- Step 4, on the standalone page: draw with it -----------------------------------------------------------------

    function createGenerate() {
        let shownUrl = '';
        const input = (id, label, value, mode = 'numeric') => {
            const control = h('input.tl-input', {id, type: 'text', inputMode: mode, value, autocomplete: 'off'});
            return {control, element: h('div.tl-field', {}, h('label.tl-label', {htmlFor: id}, label), control)};
        };
        const prompt = h('textarea.tl-input.tl-prompt', {id: 'tl-prompt', rows: 2, placeholder: 'What to draw; <lora:name:0.8> calls a LoRA', spellcheck: false,
            onkeydown: (event) => event.key === 'Enter' && (event.ctrlKey || event.metaKey) && draw()});
        const negative = h('input.tl-input', {id: 'tl-negative', type: 'text', autocomplete: 'off'});
        const seed = input('tl-seed', 'Seed', '1');
        const steps = input('tl-steps', 'Steps', '25');
        const guidance = input('tl-guidance', 'Guidance', '5', 'decimal');
        const size = input('tl-size', 'Size (px)', '');
        const go = button('Generate', () => draw(), 'primary');
        go.id = 'tl-draw';
        const error = h('p.tl-error', {role: 'alert', hidden: true});
        const picture = h('img.tl-drawn', {alt: '', hidden: true});
        const empty = h('p.tl-muted', {}, 'The picture appears here.');
        const element = card(4, 'Try it', h('div.tl-generate', {},
            h('div.tl-generate-form', {}, h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-prompt'}, 'Prompt'), prompt),
                h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-negative'}, 'Negative prompt'), negative),
                h('div.tl-fields.tl-narrow', {}, seed.element, steps.element, guidance.element, size.element), h('div.tl-actions', {}, go), error),
            h('div.tl-drawn-box', {'aria-live': 'polite'}, picture, empty)));

        const number = ({control}, otherwise) => (control.value.trim() !== '' && Number.isFinite(Number(control.value)) ? Number(control.value) : otherwise);

        async function draw() {
            go.disabled = true;
            setText(go, 'Generating …');
            show(error, false);
            const side = number(size, undefined);
            try {
                const response = await send('POST', 'generate', {prompt: prompt.value, negative_prompt: negative.value, seed: number(seed, 1), steps: number(steps, 25),
                    guidance: number(guidance, 5), width: side, height: side});
                present(await response.blob());
            } catch (problem) {
                setText(error, problem.message);
                show(error, true);
            } finally {
                go.disabled = false;
                setText(go, 'Generate');
            }
        }

        function present(blob) {
            if (shownUrl) URL.revokeObjectURL(shownUrl);
            shownUrl = URL.createObjectURL(blob);
            picture.onload = () => picture.classList.toggle('tl-tiny', picture.naturalWidth < 200);
            picture.src = shownUrl;
            picture.alt = prompt.value;
            show(picture, true);
            show(empty, false);
        }

        function tryTag(tag, trigger) {
            const words = [trigger, tag].filter((word) => word && !prompt.value.includes(word));
            prompt.value = [prompt.value.trim(), ...words].filter(Boolean).join(' ');
            element.scrollIntoView({behavior: 'smooth', block: 'center'});
            prompt.focus({preventScroll: true});
        }

        show(element, false);
        return {element, tryTag, setSize: (pixels) => { size.control.placeholder = String(pixels || 512); }};
    }


    // --- The page -----------------------------------------------------------------------------------------------------

    const PLAN_DELAY_MS = 400;
    const STATUS_EVERY_MS = 5000;
    const LONGEST_WAIT_MS = 30_000;

    /** The kit that every part gets, with what the parts before it added. */
    function assembleKit() {
        const kit = {h, show, setText, button, iconButton, card, plural, duration, fileSize, url, encode, get, post, patch, send, upload, link, remember, remembered, createField,
            outside, openTab};
        for (const name of PARTS) Object.assign(kit, window.trainLora.parts[name](kit));
        return kit;
    }

    function createApp() {
        const kit = assembleKit();
        let ready = false;
        let planNumber = 0;
        let planTimer = 0;
        let pollTimer = 0;
        let polling = false;
        let lastStatus = 0;
        let failures = 0;

        const modelDot = h('span.tl-dot', {'aria-hidden': 'true'});
        const modelText = h('span.tl-model-text');
        const modelFacts = h('span.tl-muted');
        const version = h('span.tl-muted.tl-version');
        const problems = h('div.tl-notice.tl-warn', {hidden: true});
        const connection = h('div.tl-notice.tl-warn', {hidden: true, role: 'status'}, 'Connection lost, trying again.');
        const columns = h('div.tl-columns');

        const settings = createSettings({onChange: () => { tellPictures(); planSoon(); }});
        const pictures = kit.createPictures({onChange: () => planSoon(), suggestName: () => settings.value('output_name') || settings.value('trigger_word') || '',
            onWide: (on) => columns.classList.toggle('tl-wide-pictures', on)});
        const generate = createGenerate();
        const tryTag = Object.assign((tag, trigger) => generate.tryTag(tag, trigger), {ready: () => !generate.element.hidden});
        const train = createTrain({config, settings, tryTag});

        columns.append(h('div.tl-main', {}, pictures.element, settings.element, generate.element), h('div.tl-side', {}, train.element));
        const root = h('div.tl-app', {}, h('div.tl-head', {}, h('div.tl-model', {}, modelDot, modelText, modelFacts), version), connection, problems, columns);

        /** The settings that decide what the trainer will see of the pictures. */
        function tellPictures() {
            const values = settings.config();
            pictures.setSettings(Object.fromEntries(['resolution', 'bucket_step', 'enable_bucket', 'trigger_word'].map((name) => [name, values[name]])));
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
            try {
                const answer = await planAnyway(config());
                if (number !== planNumber) return;
                train.setPlan(answer);
                settings.setErrors(answer.errors.filter(({code}) => code !== 'name_taken'));
            } catch (error) {
                if (number !== planNumber) return;
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

        function presentStatus(status) {
            const model = status.model || {trainable: false, reason: 'No model is loaded.'};
            const facts = [FAMILIES[model.family] || model.family, model.prediction_type === 'v_prediction' ? 'v-prediction' : '',
                DTYPES[model.dtype] || model.dtype, model.device];
            root.classList.toggle('tl-untrainable', !model.trainable);
            modelDot.classList.toggle('tl-off', !model.trainable);
            modelText.replaceChildren(...(model.trainable ? ['Trains on ', h('strong', {}, model.checkpoint)] : [model.reason || 'The loaded model cannot be trained.']));
            setText(modelFacts, model.trainable ? facts.filter(Boolean).join(' · ') : '');
            modelFacts.title = model.sha256 ? `sha256 ${model.sha256}` : '';
            setText(version, `Train LoRA ${status.version}`);
            problems.replaceChildren(...(status.problems || []).map((text) => h('p', {}, text)));
            show(problems, (status.problems || []).length > 0);
            settings.setDefault('resolution', (status.host || {}).default_size_px);
            generate.setSize((status.host || {}).default_size_px);
            show(generate.element, (status.host || {}).kind === 'standalone');
            train.setModel(model);
            presentCaptioning(status.current_job);
        }

        function presentCaptioning(job) {
            const captioning = Boolean(job) && !isTraining(job);
            if (captioning) pictures.followJob(job);
            train.setElsewhere(captioning || pictures.captioning() ? 'Captions are being written; training can begin when that has ended.' : '');
        }

        async function load() {
            const status = await get('status');
            const [presets, datasets] = await Promise.all([get('presets'), get('datasets')]);
            lastStatus = Date.now();
            settings.build(status.settings, presets);
            presentStatus(status);
            tellPictures();
            pictures.setDatasets(datasets);
            await chooseDataset(datasets);
            await train.readHistory();
            const last = train.history().find(({id}) => id === remembered().job);
            if (status.current_job && isTraining(status.current_job)) await train.follow(status.current_job);
            else if (last) await train.follow(last);
            ready = true;
            await plan();
        }

        async function chooseDataset(datasets) {
            const {dataset} = remembered();
            if (datasets.some(({name}) => name === dataset)) await pictures.choose(dataset);
        }

        async function refreshStatus() {
            if (!failures && Date.now() - lastStatus < STATUS_EVERY_MS) return;
            lastStatus = Date.now();
            const status = await get('status');
            presentStatus(status);
            if (status.current_job && isTraining(status.current_job) && !train.running()) await train.follow(status.current_job);
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
        }

        /** Another tab of the WebUI may be in front: a running job is still followed, so that its card shows when it ends. */
        const visible = () => !document.hidden && root.isConnected && (root.offsetParent !== null || (ready && train.running()));

        async function poll() {
            if (polling) return;
            clearTimeout(pollTimer);
            polling = true;
            if (visible()) await pollOnce();
            polling = false;
            pollSoon();
        }

        /** A server that does not answer is asked rarely: one that is just starting may take a request that comes too early badly. */
        function pollSoon() {
            clearTimeout(pollTimer);
            if (link.away() && !failures) lost();
            pollTimer = setTimeout(poll, failures ? Math.min(LONGEST_WAIT_MS, 1000 * 2 ** failures) : train.running() ? 500 : 1000);
        }

        async function pollOnce() {
            try {
                if (!ready) await load();
                await refreshStatus();
                train.setElsewhere(pictures.captioning() ? 'Captions are being written; training can begin when that has ended.' : '');
                if (root.offsetParent !== null) await pictures.poll();
                if (train.running() && await train.refresh()) planSoon(0);
                if (failures) {
                    failures = 0;
                    show(connection, false);
                    planSoon(0);
                }
            } catch (error) {
                if (!(error instanceof ServerError)) console.error('Train LoRA', error);
                lost(error.offline ? undefined : `${error.message} Trying again.`);
            }
        }

        /** What changed on disk while another window was in front is shown at once. */
        window.addEventListener('focus', () => {
            if (failures) poll();
            else if (ready && root.offsetParent !== null) pictures.poll(true).catch(() => {});
        });
        window.addEventListener('online', () => { if (failures) poll(); });
        link.listen((answers) => {
            if (polling) return;                                                           // Seen to when that is done.
            if (!answers) pollSoon();
            else if (failures) poll();
        });
        document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
        new IntersectionObserver((entries) => { if (entries.some(({isIntersecting}) => isIntersecting)) poll(); }).observe(root);   // The tab is opened.
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
