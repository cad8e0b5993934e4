/* A data set as the page knows it: pictures, captions, checks, and everything that changes them.
 *
 * What a person types is shown at once and written in the background, one thing after the other, so that nobody waits for the server and
 * every answer is built on the one before. Text that could not be written stays, here and in the browser's storage, until it is. What
 * changed on disk meanwhile is taken over where nobody is editing, and asked about where somebody is.
 */
(window.trainLora = window.trainLora || {parts: {}}).parts.dataset = (kit) => {
    'use strict';
    const {get, post, patch, upload, link, encode, url} = kit;

    const STASH_KEY = 'train-lora.unsaved.v1';
    const CHECK_DELAY_MS = 600;
    const CHECK_AGAIN_MS = 1000;
    const SAVED_MS = 1600;

    /** Split as the server does: at commas and lines; a sentence is one tag. */
    const tagsOf = (caption) => caption.split(/[,\n]/).map((tag) => tag.trim()).filter(Boolean);

    /** Drop empty lines and surplus blanks, as the server does. */
    const plainLines = (text) => text.split(/[\r\n]+/).map((line) => line.split(/\s+/).filter(Boolean).join(' ')).filter(Boolean).join('\n');


    // --- Text that is not saved yet, kept by the browser ----------------------------------------------------------------

    function stashed() {
        try {
            return JSON.parse(localStorage.getItem(STASH_KEY)) || {};
        } catch {
            return {};
        }
    }

    /** Keep a text, or forget it (null). */
    function stash(dataset, filename, text) {
        const all = stashed();
        const own = {...all[dataset]};
        if (text === null) delete own[filename];
        else own[filename] = text;
        if (Object.keys(own).length) all[dataset] = own;
        else delete all[dataset];
        try {
            localStorage.setItem(STASH_KEY, JSON.stringify(all));
        } catch {
            // Private windows may refuse; the text is still on the page.
        }
    }

    const EMPTY = {unsaved: null, mark: '', message: '', conflict: null, incoming: null, editing: false, check: null};
    const FACTS = ['width', 'height', 'repeats', 'warnings', 'thumbnail'];

    /** The data set `name`. `hear` is told of changes: pictures(), captions(filenames), history(), checks(filenames), trouble(error). */
    function createDataset(name, hear) {
        let pictures = new Map();
        let about = {path: '', trash: null, problems: [], tables: []};
        let revision = '';
        let history = {undo: null, redo: null};
        let checks = null;
        let checkSettings = {};
        let checkNumber = 0;
        let checkTimer = 0;
        let chain = Promise.resolve();
        let waiting = 0;
        let reading = null;
        let damaged = 0;
        let closed = false;

        const at = (rest = '') => `datasets/${encode(name)}${rest}`;
        const tell = (kind, ...details) => { if (!closed) hear[kind](...details); };

        /** Do one thing after the other. */
        function inOrder(task) {
            waiting += 1;
            const result = chain.then(task);
            chain = result.catch(() => {}).then(() => { waiting -= 1; });
            return result;
        }


        // --- Reading ------------------------------------------------------------------------------------------------------

        /** Read it again. Whoever asks while that is still waiting for its turn shares it. */
        function load() {
            reading = reading || inOrder(() => {
                reading = null;
                return read();
            });
            return reading;
        }

        async function read() {
            merge(await get(at()));
        }

        function merge(data) {
            const before = pictures;
            const changed = [];
            pictures = new Map(data.pictures.map((row) => {
                const known = before.get(row.filename);
                if (!known) return [row.filename, {...EMPTY, ...row, caption: row.caption || '', version: row.version || '', tags: tagsOf(row.caption || '')}];
                if (adopt(known, row)) changed.push(row.filename);
                return [row.filename, known];
            }));
            const problems = JSON.stringify([about.problems, about.tables]);
            const found = data.problems || [];
            about = {path: data.path, trash: data.trash || null, problems: found.filter(({table}) => !table), tables: found.filter(({table}) => table)};
            remember(data);
            const same = JSON.stringify([...before.keys()]) === JSON.stringify([...pictures.keys()]) && problems === JSON.stringify([about.problems, about.tables]);
            if (!same || !before.size) tell('pictures');
            if (changed.length) tell('captions', changed);
            checkSoon(before.size ? CHECK_DELAY_MS : 0);
        }

        /** Take over what the disk says, unless somebody is at it: then it waits until they have left. Returns whether a card must be drawn anew. */
        function adopt(picture, row) {
            const looks = FACTS.some((key) => JSON.stringify(picture[key]) !== JSON.stringify(row[key]));
            for (const key of FACTS) picture[key] = row[key];
            const theirs = {caption: row.caption || '', version: row.version || '', automatic: Boolean(row.automatic)};
            if (picture.version === theirs.version && (picture.unsaved !== null || picture.caption === theirs.caption)) {
                const other = picture.automatic !== theirs.automatic && picture.unsaved === null;
                if (other) picture.automatic = theirs.automatic;
                return looks || other;
            }
            if (picture.unsaved !== null || picture.editing) picture.incoming = theirs;
            else Object.assign(picture, theirs, {tags: tagsOf(theirs.caption), conflict: null, mark: ''});
            return true;
        }

        /** Note where the data set stands. What is not known from before an edit of ours is left to the next poll to find. */
        function remember({revision: at, revision_before: before = revision, history: steps}) {
            if (at !== undefined && before === revision) revision = at;
            if (steps) history = steps;
            tell('history');
        }

        /** Take over an answer to something that this page did. */
        async function apply(edited) {
            const changed = Object.keys(edited.captions || {}).filter((filename) => pictures.has(filename));
            for (const filename of changed) {
                const picture = pictures.get(filename);
                const {caption, version, automatic} = edited.captions[filename];
                Object.assign(picture, {version, incoming: null});
                if (picture.unsaved !== null) continue;
                Object.assign(picture, {caption: caption || '', tags: tagsOf(caption || ''), automatic: Boolean(automatic), conflict: null});
            }
            remember(edited);
            if (edited.files_changed) await read();
            tell('captions', changed);
            checkSoon();
            return edited;
        }

        /** See whether something changed on disk. Throws where the server does not answer. */
        async function poll() {
            if (waiting) return;
            const now = await get(at('/revision'));
            if (!waiting && now.revision !== revision) await load();
            else if (!waiting) remember(now);
            retry();
        }


        // --- Captions -----------------------------------------------------------------------------------------------------

        /** Show a text as the caption at once, and write it. */
        function save(filename, text) {
            const picture = pictures.get(filename);
            const caption = plainLines(text);
            Object.assign(picture, {caption, tags: tagsOf(caption), automatic: false, unsaved: caption, mark: 'saving', message: '', conflict: null});
            stash(name, filename, caption);
            tell('captions', [filename]);
            return inOrder(() => write(picture));
        }

        async function write(picture, {anyway = false} = {}) {
            if (picture.unsaved === null) return;                                          // An earlier one has taken this text along.
            const text = picture.unsaved;
            try {
                const versions = anyway ? {} : {versions: {[picture.filename]: picture.version}};
                const edited = await patch(at('/captions'), {changes: {[picture.filename]: text}, ...versions});
                if (picture.unsaved === text) settle(picture);
                await apply(edited);
            } catch (error) {
                keep(picture, error);
            }
        }

        function settle(picture) {
            Object.assign(picture, {unsaved: null, mark: 'saved', message: '', conflict: null, incoming: null});
            stash(name, picture.filename, null);
            setTimeout(() => {
                if (picture.mark !== 'saved') return;
                picture.mark = '';
                tell('captions', [picture.filename]);
            }, SAVED_MS);
        }

        /** A text could not be written: it stays, with what stands in its way. */
        function keep(picture, error) {
            const theirs = (error.conflicts || []).find(({filename}) => filename === picture.filename);
            if (theirs && (theirs.caption || '') === picture.unsaved) {                    // Both wrote the same.
                picture.version = theirs.version;
                settle(picture);
            } else if (error.code === 'changed_meanwhile' && theirs) {
                Object.assign(picture, {mark: 'conflict', conflict: {caption: theirs.caption || '', version: theirs.version}});
            } else {
                Object.assign(picture, {mark: 'failed', message: error.message, offline: Boolean(error.offline)});
            }
            tell('captions', [picture.filename]);
            if (error.offline) tell('trouble', error);
        }

        /** Answer a conflict: keep what was typed here, or take what is on disk. */
        function resolve(filename, mine) {
            const picture = pictures.get(filename);
            const {conflict} = picture;
            if (!conflict) return undefined;
            if (mine) {
                Object.assign(picture, {mark: 'saving', conflict: null});
                tell('captions', [filename]);
                return inOrder(() => write(picture, {anyway: true}));
            }
            settle(picture);
            Object.assign(picture, {caption: conflict.caption, version: conflict.version, tags: tagsOf(conflict.caption), mark: '', automatic: false});
            tell('captions', [filename]);
            return inOrder(read);
        }

        const unsaved = () => [...pictures.values()].filter((picture) => picture.unsaved !== null && picture.mark === 'failed');

        /** Try again to write what the server did not take for want of an answer, or (`all`) everything that failed. */
        function retry(all = false) {
            for (const picture of unsaved()) {
                if (!all && !picture.offline) continue;
                picture.mark = 'saving';
                tell('captions', [picture.filename]);
                inOrder(() => write(picture));
            }
        }

        function beginEdit(filename) {
            pictures.get(filename).editing = true;
        }

        /** Somebody has left a field without a change to save: what came meanwhile may show. */
        function endEdit(filename) {
            const picture = pictures.get(filename);
            if (!picture) return;
            picture.editing = false;
            if (picture.unsaved !== null || !picture.incoming) return;
            Object.assign(picture, picture.incoming, {tags: tagsOf(picture.incoming.caption), incoming: null});
            tell('captions', [filename]);
        }

        const draft = (filename, text) => stash(name, filename, text);

        /** What was typed here before and never reached the disk: [{filename, text}]. What has become true meanwhile is forgotten. */
        function leftover() {
            const own = Object.entries(stashed()[name] || {});
            const open = own.filter(([filename, text]) => pictures.has(filename) && plainLines(text) !== pictures.get(filename).caption);
            for (const [filename] of own) if (!open.some(([other]) => other === filename)) stash(name, filename, null);
            return open.map(([filename, text]) => ({filename, text: plainLines(text)}));
        }

        const forget = (filenames) => filenames.forEach((filename) => stash(name, filename, null));


        // --- Everything else that changes a data set ----------------------------------------------------------------------

        const act = (path, body) => inOrder(async () => apply(await post(at(path), body)));
        const undo = (ifChanged = 'refuse') => act('/captions/undo', {if_changed: ifChanged});
        const redo = (ifChanged = 'refuse') => act('/captions/redo', {if_changed: ifChanged});
        const bulk = (body) => act('/bulk-edit', body);
        const preview = (body) => inOrder(() => post(at('/bulk-edit'), {...body, preview: true}));
        const rename = (filename, to) => act('/rename', {filename, to});
        const rotate = (filenames, degrees) => act('/rotate', {filenames, degrees});
        const trash = (filenames) => act('/trash', {filenames});

        const readTable = (filename) => get(at(`/table?filename=${encode(filename)}`));
        const trashTable = (filename) => act('/table/trash', {filename});
        const replaceTable = (file, fields) => inOrder(async () => apply(await upload(at('/table'), [{file, name: file.name, field: 'file'}], undefined, fields)));

        const table = (file, fields) => upload(at('/captions/import'), [{file, name: file.name, field: 'file'}], undefined, fields);
        const previewImport = (file, encoding) => inOrder(() => table(file, encoding ? {encoding} : {}));
        const applyImport = (file, encoding, versions) => inOrder(async () => {
            const answer = await table(file, {apply: 'true', versions: JSON.stringify(versions), ...(encoding ? {encoding} : {})});
            await apply(answer);
            await read();
            return answer;
        });


        // --- Checks -------------------------------------------------------------------------------------------------------

        function checkSoon(delay = CHECK_DELAY_MS) {
            clearTimeout(checkTimer);
            checkTimer = setTimeout(() => link.whenBack(check), delay);
        }

        function setCheckSettings(settings) {
            if (JSON.stringify(settings) === JSON.stringify(checkSettings)) return;
            checkSettings = settings;
            checkSoon();
        }

        async function check() {
            if (closed || !pictures.size) return;
            const number = checkNumber += 1;
            let answer;
            try {
                answer = await post(at('/checks'), checkSettings);
            } catch (error) {
                if (error.offline) checkSoon();
                return;
            }
            if (closed || number !== checkNumber) return;
            checks = answer;
            tell('checks', takeChecks(answer.pictures || {}));
            if (!answer.ready) checkSoon(CHECK_AGAIN_MS);
            else readDamaged(answer);
        }

        /** Files that turned out to be damaged when they were looked into move from the pictures to the problems. */
        function readDamaged({summary}) {
            const {count = 0} = (summary || []).find(({code}) => code === 'unreadable') || {};
            if (count === about.problems.length || count === damaged) return;
            damaged = count;
            load().catch(() => {});
        }

        function takeChecks(found) {
            const changed = [];
            for (const [filename, picture] of pictures) {
                const check = found[filename] || null;
                if (JSON.stringify(check) === JSON.stringify(picture.check)) continue;
                picture.check = check;
                changed.push(filename);
            }
            return changed;
        }

        const cropUrl = (filename) => {
            const query = new URLSearchParams(Object.entries(checkSettings).filter(([key, value]) => !['trigger_word', 'caption_lines', 'caption_extension'].includes(key) && value !== undefined && value !== ''));
            return url(`${at('/crops/')}${filename.split('/').map(encode).join('/')}?${query}`).href;
        };
        const pictureUrl = (kind, filename) => {
            const stamp = (pictures.get(filename).thumbnail.split('?')[1] || '');
            return url(`${at(`/${kind}/`)}${filename.split('/').map(encode).join('/')}${stamp && `?${stamp}`}`).href;
        };

        function close() {
            closed = true;
            clearTimeout(checkTimer);
        }

        return {name, at, load, poll, save, resolve, retry, beginEdit, endEdit, draft, leftover, forget, undo, redo, bulk, preview, rename, rotate, trash, previewImport,
            applyImport, readTable, replaceTable, trashTable, setCheckSettings, checkSoon, cropUrl, pictureUrl, close, unsaved, checkSettings: () => checkSettings,
            picture: (filename) => pictures.get(filename), pictures: () => [...pictures.values()], filenames: () => [...pictures.keys()], size: () => pictures.size,
            about: () => about, history: () => history, checks: () => checks};
    }

    /** What is wrong with a picture, as far as is known: [{code, message}]. What a caption just typed has mended is left out. */
    function remarksOf({check, caption, warnings}) {
        if (check) return (check.remarks || []).filter(({code}) => code !== 'no_caption' || !caption);
        const said = (warnings || []).filter((text) => !/^no caption/i.test(text)).map((message) => ({code: 'warning', message}));
        return caption ? said : [{code: 'no_caption', message: 'No caption.'}, ...said];
    }

    return {createDataset, tagsOf, remarksOf, plainLines};
};
