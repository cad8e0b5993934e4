/* Step 1, the pictures: choose or make a data set, add files, and everything that is done to its captions, around the grid. */
(window.trainLora = window.trainLora || {parts: {}}).parts.pictures = (kit) => {
    'use strict';
    const {h, show, setText, button, iconButton, card, plural, get, post, upload, url, encode, remember, remembered, icon, tool, ask, openMenu, toast, createDataset,
        createGrid, createTags, openBulk, openDetail, importTable, createTableNotice, openCaptioning, createCaptioningBar, remarksOf} = kit;

    const PICTURE_ENDINGS = /\.(png|jpe?g|jpe|jfif|webp|bmp|gif|tiff?|avif|heic|jxl)$/i;
    const TABLE_ENDINGS = /\.(csv|jsonl)$|^(metadata|meta_(cap|cap_dd|clean|lat))\.json$/i;      // The latter are kohya's.
    const CAPTION_ENDINGS = /\.(txt|caption)$/i;
    const ARCHIVE_ENDINGS = /\.zip$/i;
    const DROP_WORDS = 'Drop pictures and captions here, or a ZIP of them';
    const MOST_LISTED = 200;
    const UPLOAD_BATCH_FILES = 16;
    const UPLOAD_BATCH_BYTES = 32 * 2 ** 20;
    const POLL_MS = 3000;
    const SIZES = {least: 112, most: 320, first: 168};
    const CHECK_TITLES = {no_caption: 'No caption', long_caption: 'Caption too long', small: 'Smaller than training', near_duplicate: 'Near-duplicates',
        unreadable: 'Cannot be used', no_trigger: 'Trigger word missing', odd_ratio: 'Odd shape', warning: 'Remarks'};


    // --- Files that are dropped or chosen -----------------------------------------------------------------------------

    /** List the files in a drop, folders included, as {file, folder}. Must be called inside the drop event. */
    async function droppedFiles(dataTransfer) {
        const entries = [...dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
        if (!entries.length) return {files: [...dataTransfer.files].map((file) => ({file, folder: ''})), folder: ''};
        const files = [];
        for (const entry of entries) await collect(entry, '', files);
        const only = entries.length === 1 && entries[0].isDirectory ? entries[0].name : '';
        return {files, folder: only};
    }

    async function collect(entry, folder, files) {
        if (entry.isFile) {
            files.push({file: await new Promise((resolve, reject) => entry.file(resolve, reject)), folder});
            return;
        }
        const reader = entry.createReader();
        for (;;) {
            const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
            if (!batch.length) return;
            for (const child of batch) await collect(child, folder ? `${folder}/${entry.name}` : entry.name, files);
        }
    }

    function chosenFiles(input) {
        const files = [...input.files].map((file) => ({file, folder: (file.webkitRelativePath || '').split('/').slice(0, -1).join('/')}));
        const tops = new Set(files.map(({folder}) => folder.split('/')[0]));
        return {files, folder: tops.size === 1 ? [...tops][0] : ''};
    }

    const stem = (name) => name.replace(/\.[^.]*$/, '');

    /** Give every file a flat name (same stems of different folders are told apart) and leave out what is no picture or caption. */
    function sortOut(files) {
        const owners = new Map();
        const [wanted, tables, refused] = [[], [], []];
        for (const {file, folder} of files) {
            if (file.name.startsWith('.') || /^(thumbs\.db|desktop\.ini)$/i.test(file.name)) continue;
            if (TABLE_ENDINGS.test(file.name)) {
                tables.push(file);
                continue;
            }
            if (ARCHIVE_ENDINGS.test(file.name)) {
                wanted.push({file, name: file.name});
                continue;
            }
            if (!PICTURE_ENDINGS.test(file.name) && !CAPTION_ENDINGS.test(file.name)) {
                refused.push({filename: file.name, reason: 'Neither a picture nor captions (.txt, .caption, .csv, .jsonl) nor a ZIP of both.'});
                continue;
            }
            const key = stem(file.name).toLowerCase();
            if (!owners.has(key)) owners.set(key, folder);
            const name = owners.get(key) === folder ? file.name : `${folder.split('/').pop()}_${file.name}`;
            wanted.push({file, name});
        }
        // A picture goes before its caption, and both go in the same request.
        wanted.sort((a, b) => stem(a.name).localeCompare(stem(b.name)) || CAPTION_ENDINGS.test(a.name) - CAPTION_ENDINGS.test(b.name));
        return {wanted, tables, refused};
    }

    function inBatches(files) {
        const batches = [];
        let batch = [];
        let size = 0;
        for (const item of files) {
            const newStem = !batch.length || stem(batch[batch.length - 1].name) !== stem(item.name);
            if (batch.length && newStem && (batch.length >= UPLOAD_BATCH_FILES || size + item.file.size > UPLOAD_BATCH_BYTES)) {
                batches.push(batch);
                [batch, size] = [[], 0];
            }
            batch.push(item);
            size += item.file.size;
        }
        return batch.length ? [...batches, batch] : batches;
    }


    // --- Choosing and adding --------------------------------------------------------------------------------------------

    /** The drop zone with its pickers. `take({files, folder})` gets what was dropped or chosen anywhere on `card`. */
    function createDrop({take, fail}) {
        const fileInput = h('input', {type: 'file', multiple: true, hidden: true, id: 'tl-files', onchange: () => chosen(fileInput)});
        const folderInput = h('input', {type: 'file', multiple: true, hidden: true, webkitdirectory: true, id: 'tl-folder-files',
            onchange: () => chosen(folderInput)});
        const title = h('span.tl-drop-title', {}, DROP_WORDS);
        const zone = h('div.tl-drop', {onclick: (event) => event.target.closest('button') || fileInput.click()}, title,
            h('span.tl-drop-choose', {}, 'or choose ', iconButton('files', 'Choose pictures, .txt captions, metadata.csv or .jsonl, or a .zip of them', () => fileInput.click()),
                ' · ', iconButton('a folder', 'Choose a folder with everything in it', () => folderInput.click())));

        function chosen(input) {
            const found = chosenFiles(input);
            input.value = '';
            take(found);
        }

        /** Take drops anywhere on the card. */
        function listen(element) {
            let depth = 0;
            const hasFiles = (event) => event.dataTransfer && [...event.dataTransfer.types].includes('Files');
            const ours = (event) => {
                if (!hasFiles(event)) return false;
                event.preventDefault();
                event.stopPropagation();
                return true;
            };
            element.addEventListener('dragenter', (event) => {
                if (!hasFiles(event)) return;
                depth += 1;
                element.classList.add('tl-dragging');
            });
            element.addEventListener('dragleave', () => {
                depth = Math.max(0, depth - 1);
                if (!depth) element.classList.remove('tl-dragging');
            });
            element.addEventListener('dragover', (event) => { if (ours(event)) event.dataTransfer.dropEffect = 'copy'; });
            element.addEventListener('drop', (event) => {
                depth = 0;
                element.classList.remove('tl-dragging');
                if (ours(event)) droppedFiles(event.dataTransfer).then(take, fail);
            });
        }

        return {zone, inputs: [fileInput, folderInput], listen, choose: () => fileInput.click(), setFilled: (filled) =>
            setText(title, filled ? 'Drop more here' : DROP_WORDS)};
    }

    /** Sends files in batches and shows how far it is. */
    function createUploader() {
        const bar = h('div.tl-bar-fill');
        const text = h('span.tl-muted');
        const element = h('div.tl-upload', {hidden: true, role: 'status'}, h('div.tl-bar.tl-thin', {}, bar), text);

        /** Send all; returns {added, refused}. */
        async function sendAll(name, wanted, fields = {}) {
            const total = wanted.reduce((sum, {file}) => sum + file.size, 0) || 1;
            let [sent, done] = [0, 0];
            const [added, refused] = [[], []];
            const progress = (loaded) => {
                bar.style.width = `${Math.min(100, 100 * (sent + loaded) / total)}%`;
                setText(text, `Adding ${plural(wanted.length, 'file')} · ${done} done`);
            };
            progress(0);
            show(element, true);
            try {
                for (const batch of inBatches(wanted)) {
                    const answer = await upload(`datasets/${encode(name)}/images`, batch, progress, fields);
                    added.push(...answer.added);
                    refused.push(...answer.refused);
                    sent += batch.reduce((sum, {file}) => sum + file.size, 0);
                    done += batch.length;
                    progress(0);
                }
            } finally {
                show(element, false);
            }
            return {added, refused};
        }

        return {element, sendAll};
    }

    const listItem = ({filename, reason}) => h('li', {}, h('strong', {}, filename), reason.startsWith(filename) ? reason.slice(filename.length) : ` ${reason}`);

    /** A list of files with what is wrong with them, that can be dismissed. */
    function createFileNotice() {
        const list = h('ul.tl-list');
        const title = h('strong');
        const dismiss = iconButton('Dismiss', 'Hide this list', () => show(element, false));
        const element = h('div.tl-notice.tl-warn', {hidden: true}, h('div.tl-notice-head', {}, title, dismiss), list);
        return {element, present(heading, items) {
            setText(title, heading);
            const more = items.length - MOST_LISTED;
            list.replaceChildren(...items.slice(0, MOST_LISTED).map(listItem), ...(more > 0 ? [h('li', {}, `and ${more} more.`)] : []));
            show(element, items.length > 0);
        }};
    }


    // --- Checks, summed up ----------------------------------------------------------------------------------------------

    const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

    /** What was found wrong, each a switch that shows only those pictures. */
    function createChecks({grid, onUnreadable}) {
        const chips = h('div.tl-checks', {role: 'group', 'aria-label': 'Checks'});
        const state = h('span.tl-muted.tl-checks-state');
        const element = h('div.tl-check-line', {}, chips, state);

        function present(dataset) {
            const answer = dataset.checks();
            const counts = new Map(((answer && answer.summary) || []).map(({code, title, count}) => [code, {title, count}]));
            for (const [code, entry] of counts) if (code !== 'unreadable') entry.count = 0;
            for (const picture of dataset.pictures()) {
                for (const code of new Set(remarksOf(picture).map((remark) => remark.code))) {
                    if (!counts.has(code)) counts.set(code, {title: CHECK_TITLES[code] || code, count: 0});
                    counts.get(code).count += 1;
                }
            }
            const problems = dataset.about().problems.length;
            if (problems) counts.set('unreadable', {title: (counts.get('unreadable') || {title: CHECK_TITLES.unreadable}).title, count: problems});
            const wanted = [...counts].filter(([code, {count}]) => count > 0 || grid.filter.check === code);
            chips.replaceChildren(...wanted.map(([code, {title, count}]) => h(`button.tl-check-chip${code === 'unreadable' ? '.tl-bad' : ''}`, {type: 'button',
                'aria-pressed': String(grid.filter.check === code), title: code === 'unreadable' ? 'List these files' : 'Show only these pictures',
                onclick: () => (code === 'unreadable' ? onUnreadable() : grid.setFilter({check: grid.filter.check === code ? '' : code}))}, capital(title),
            h('span.tl-chip-count', {}, String(count)))));
            const busy = answer && !answer.ready;
            setText(state, !answer ? 'Checking …' : busy ? `Checking ${answer.examined} of ${answer.total} …` : wanted.length ? '' : 'Nothing to remark');
            show(chips, wanted.length > 0);
        }

        return {element, present};
    }


    // --- Step 1 -------------------------------------------------------------------------------------------------------

    function createPictures({onChange, suggestName, onWide}) {
        let datasets = [];
        let current = null;
        let uploading = false;
        let detail = null;
        let polled = 0;
        let stateFrame = 0;
        let captionedStep;
        let settings = {};

        const chooser = h('select.tl-input', {id: 'tl-dataset', onchange: () => choose(chooser.value)});
        const path = h('input.tl-input', {id: 'tl-folder', type: 'text', placeholder: '/path/to/pictures', autocomplete: 'off', spellcheck: false,
            oninput: () => show(pathError, false), onkeydown: (event) => event.key === 'Enter' && adopt()});
        const useFolder = button('Use', () => adopt());
        const copyFolder = button('Copy', () => copy());
        copyFolder.title = 'Copy its pictures into the data set; prompts that they were made with become captions';
        useFolder.title = 'Work in this folder itself';
        const pathError = h('p.tl-error', {role: 'alert', hidden: true});

        const drop = createDrop({take: (found) => take(found), fail: (error) => fail(error)});
        const uploader = createUploader();
        const refusedNotice = createFileNotice();
        const problemList = h('ul.tl-list');
        const problemBox = h('div.tl-notice.tl-warn', {hidden: true}, problemList);
        const tableNotice = createTableNotice({done: (text) => done(text), fail: (error) => fail(error)});
        const unsavedBox = h('div.tl-notice.tl-warn', {hidden: true, role: 'status'});

        const grid = createGrid({actions: {open: (filename) => open(filename), trash: (filenames) => trash(filenames), changed: () => presentState()}});
        const tags = createTags({grid, act: {rename: (tag, to) => edit({action: 'rename_tag', tag, to}), remove: (tag) => edit({action: 'remove_tag', tag})}});
        const checks = createChecks({grid, onUnreadable: () => show(problemBox, problemBox.hidden)});
        const captioning = createCaptioningBar({seen: () => current && current.load().catch(() => {}), ended: () => captioned(),
            openPicture: (filename) => open(filename), undo: () => takeBack(captionedStep), goOn: ({captioner}) => automatic(captioner)});

        const undoTool = tool('undo', 'Undo', () => travel('undo'), {disabled: true, id: 'tl-undo'});
        const redoTool = tool('redo', 'Redo', () => travel('redo'), {disabled: true, id: 'tl-redo'});
        const size = h('input.tl-size', {type: 'range', min: SIZES.least, max: SIZES.most, step: 8, title: 'Size of the cards', 'aria-label': 'Size of the cards', oninput: () => {
            setSize(Number(size.value));
            remember({cardSize: Number(size.value)});
        }});
        const wide = tool('expand', 'Use the whole width', () => setWide(!remembered().wide), {'aria-pressed': 'false'});

        const summary = h('p.tl-summary', {'aria-live': 'polite'});
        const where = h('span.tl-path');
        const selection = h('div.tl-selection', {hidden: true});
        const selectionCount = h('span.tl-selection-count');
        selection.append(selectionCount, tool('rotateLeft', 'Rotate the selected to the left', () => rotate(grid.selected(), 270)),
            tool('rotateRight', 'Rotate the selected to the right', () => rotate(grid.selected(), 90)),
            tool('trash', 'Delete the selected (Del)', () => trash(grid.selected())),
            iconButton('Clear', 'Select nothing (Esc)', () => grid.selectAll([])));
        const search = h('input.tl-input', {type: 'search', id: 'tl-search', placeholder: 'Search captions and names', 'aria-label': 'Search captions and names',
            oninput: () => grid.setFilter({text: search.value.trim()}), onkeydown: (event) => {
                if (event.key !== 'ArrowDown' && event.key !== 'Enter') return;
                event.preventDefault();
                if (grid.shown().length) grid.focus(grid.shown()[0]);
            }});
        const selectedOnly = h('input.tl-check', {type: 'checkbox', id: 'tl-selected-only', onchange: () => grid.setFilter({selectedOnly: selectedOnly.checked})});
        const clear = iconButton('Show all', 'Clear search, tags and checks', () => clearFilter());
        const editButton = button('Edit captions …', () => openBulk({dataset: current, grid, triggerWord: settings.trigger_word || '', done: (edited, count) =>
            done(`${edited.label || 'Captions changed'}${/\d/.test(edited.label || '') ? '' : ` · ${plural(count, 'caption')}`}`)}));
        const autoButton = button('Caption automatically …', () => automatic());
        const moreButton = tool('dots', 'More', () => openMenu(moreButton, moreItems(), 'More'), {'aria-haspopup': 'menu'});
        moreButton.classList.add('tl-framed');

        const toolLine = h('div.tl-tool-line', {}, h('div.tl-search', {}, icon('search'), search),
            h('label.tl-only', {htmlFor: 'tl-selected-only'}, selectedOnly, 'Selected only'),
            h('div.tl-tool-group', {}, editButton, autoButton, moreButton));
        const gridBox = h('div.tl-pictures-box', {hidden: true}, h('div.tl-summary-line', {}, summary, clear, where, selection), tableNotice.element, checks.element, problemBox, toolLine,
            tags.element, grid.element);
        const element = card(1, 'Pictures',
            h('div.tl-source', {},
                h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-dataset'}, 'Data set'), chooser),
                h('div.tl-field', {}, h('label.tl-label', {htmlFor: 'tl-folder'}, 'Folder on the server'), h('div.tl-joined', {}, path, useFolder, copyFolder)), drop.zone),
            pathError, ...drop.inputs, uploader.element, refusedNotice.element, unsavedBox, captioning.element, gridBox);
        const headTools = h('div.tl-head-tools', {hidden: true}, undoTool, redoTool, size, wide);
        element.querySelector('.tl-card-head').append(headTools);
        element.id = 'tl-pictures';
        element.tabIndex = -1;                                                             // The focus falls back to it.
        drop.listen(element);


        // --- Which data set -----------------------------------------------------------------------------------------------

        function setDatasets(list) {
            datasets = list;
            chooser.replaceChildren(h('option', {value: ''}, 'New data set'),
                ...list.map(({name, pictures}) => h('option', {value: name}, `${name} (${plural(pictures, 'picture')})`)));
            chooser.value = current ? current.name : '';
        }

        async function refreshDatasets() {
            setDatasets(await get('datasets'));
        }

        async function choose(name) {
            show(pathError, false);
            if (current && current.name === name) return current.load().catch(fail);
            const next = name ? listened(name) : null;
            try {
                if (next) await next.load();
                grid.finish();                                                             // A caption being written is saved first.
                if (current) current.close();
                present(next);
            } catch (error) {
                next.close();
                fail(error);
                chooser.value = current ? current.name : '';
            }
            return undefined;
        }

        /** A data set whose news are heard once it is the one that is shown. */
        function listened(name) {
            const hear = {};
            const next = createDataset(name, hear);
            const when = (act) => (...details) => { if (next === current) act(...details); };
            Object.assign(hear, {pictures: when(() => sync()), captions: when((filenames) => captionsChanged(filenames)), history: when(() => presentHistory()),
                checks: when((filenames) => checksChanged(filenames)), trouble: () => {}});
            next.setCheckSettings(settings);
            return next;
        }

        function present(dataset) {
            current = dataset;
            refusedNotice.present('', []);
            if (detail && detail.isOpen()) detail.close();
            chooser.value = dataset ? dataset.name : '';
            grid.setDataset(dataset);
            tags.setDataset(dataset);
            [search.value, selectedOnly.checked] = ['', false];
            sync();
            presentHistory();
            offerUnsaved();
            captionedStep = undefined;
            if (!captioning.running()) captioning.dismiss();
            if (dataset) offerToGoOn(dataset);
            remember({dataset: dataset ? dataset.name : ''});
        }

        function sync() {
            const filled = Boolean(current) && (current.size() > 0 || current.about().problems.length + current.about().tables.length > 0);
            show(gridBox, filled);
            show(headTools, Boolean(current));
            for (const part of [toolLine, grid.element]) show(part, Boolean(current) && current.size() > 0);
            element.classList.toggle('tl-filled', filled);
            drop.setFilled(filled);
            grid.sync();
            presentProblems();
            if (detail && detail.isOpen()) detail.present();
            onChange();
        }

        function presentProblems() {
            const problems = current ? current.about().problems : [];
            problemList.replaceChildren(...problems.map(listItem));
            if (!problems.length) show(problemBox, false);
            tableNotice.present(current);
            setText(where, current ? current.about().path : '');
            where.title = where.textContent;
        }

        function captionsChanged(filenames) {
            grid.present(filenames);
            if (detail && detail.isOpen()) detail.present();
            stateSoon();
            onChange();
        }

        /** Sums and tags are counted once, however many captions changed, and not while the next field opens. */
        function stateSoon() {
            cancelAnimationFrame(stateFrame);
            stateFrame = requestAnimationFrame(presentState);
        }

        function checksChanged(filenames) {
            grid.presentRemarks(filenames);
            checks.present(current);
            if (filenames.length && detail && detail.isOpen()) detail.present();
        }

        /** Everything that depends on what is shown, selected or written. */
        function presentState() {
            if (!current) return;
            const captions = current.pictures().filter(({caption}) => caption).length;
            const [shown, selected] = [grid.shown().length, grid.selected().length];
            const failed = current.unsaved().length;
            setText(summary, [plural(current.size(), 'picture'), plural(captions, 'caption'), grid.filtering() ? `${shown} shown` : '', failed ? `${failed} not saved` : '']
                .filter(Boolean).join(' · '));
            setText(selectionCount, `${selected} selected`);
            show(selection, selected > 0);
            show(where, !selected);
            show(clear, grid.filtering());
            selectedOnly.disabled = !selected && !selectedOnly.checked;
            checks.present(current);
            tags.present();
        }

        function clearFilter() {
            [search.value, selectedOnly.checked] = ['', false];
            grid.showAll();
        }

        async function adopt() {
            const folder = path.value.trim();
            if (!folder) return path.focus();
            useFolder.disabled = true;
            try {
                const {name} = await post('datasets', {path: folder});
                await refreshDatasets();
                await choose(name);
                path.value = '';
            } catch (error) {
                fail(error);
            } finally {
                useFolder.disabled = false;
            }
            return undefined;
        }

        /** Copy the pictures of a folder on the server, such as the WebUI's output folder, into the data set. */
        async function copy() {
            const folder = path.value.trim();
            if (!folder) return path.focus();
            copyFolder.disabled = true;
            try {
                const name = current ? current.name : freeName(folder.split(/[\\/]/).filter(Boolean).pop() || '');
                const {added, refused} = await post(`datasets/${encode(name)}/folder`, {folder, create: !current, caption_from_prompt: true});
                await refreshDatasets();
                await choose(name);
                presentRefused(refused);
                path.value = '';
                toast(`${plural(added.length, 'file')} copied to ${name}.`);
            } catch (error) {
                fail(error);
            } finally {
                copyFolder.disabled = false;
            }
            return undefined;
        }

        const presentRefused = (refused) =>
            refusedNotice.present(refused.length === 1 ? '1 file was not taken' : `${refused.length} files were not taken`, refused);

        function freeName(wish) {
            const taken = new Set(datasets.map(({name}) => name.toLowerCase()));
            const base = (wish.split('/')[0] || suggestName() || 'pictures').trim();
            let name = base;
            for (let number = 2; taken.has(name.toLowerCase()); number += 1) name = `${base}-${number}`;
            return name;
        }

        async function newDataset(wish) {
            const name = freeName(wish);
            try {
                return (await post('datasets', {name})).name;
            } catch (error) {
                if (error.offline) throw error;
                return (await post('datasets', {})).name;                                  // A name that the server cannot use: let it choose one.
            }
        }


        // --- Adding -------------------------------------------------------------------------------------------------------

        async function take({files, folder}) {
            if (!files.length) return;
            if (uploading) return fail({message: 'Files are still being added. Drop these again when that is done.'});
            const {wanted, tables, refused} = sortOut(files);
            if (!current && tables.length && !wanted.length) {
                return fail({message: 'Choose the data set that the table is for, or drop its pictures together with it.'});
            }
            uploading = true;
            show(pathError, false);
            try {
                if (wanted.length || tables.length) await addAll(wanted, tables, refused, folder);
            } catch (error) {
                fail(error);
            } finally {
                uploading = false;
                presentRefused(refused);
            }
            return undefined;
        }

        /** Pictures go first, so that a table finds what it names. */
        async function addAll(wanted, tables, refused, folder) {
            const fresh = !current;
            const archive = wanted.length === 1 && ARCHIVE_ENDINGS.test(wanted[0].name) ? stem(wanted[0].name) : '';
            const name = current ? current.name : await newDataset(folder || archive);
            const bare = Boolean(folder) && !tables.length && !wanted.some(({name: file}) => CAPTION_ENDINGS.test(file));
            try {                                                                          // A folder without captions may be one of the WebUI's outputs.
                if (wanted.length) refused.push(...(await uploader.sendAll(name, wanted, bare ? {caption_from_prompt: 'true'} : {})).refused);
            } finally {
                await refreshDatasets();
                await choose(name);
            }
            for (const file of tables) await readTable(file, fresh);
        }

        async function readTable(file, fresh = false) {
            try {
                await importTable(file, {dataset: current, fresh, done: (edited, {changes, problems}) => {
                    done(`${plural(changes.length, 'caption')} from ${file.name}${problems.length ? `, ${plural(problems.length, 'line')} left out` : ''}`);
                }});
            } catch (error) {
                fail({message: `${file.name}: ${error.message}`});
            }
        }

        /** Take a picture from the WebUI's gallery, with its prompt as caption; returns the data set's name. */
        async function receive(files) {
            const name = current ? current.name : datasets.some((entry) => entry.name === 'generated') ? 'generated' : await newDataset('generated');
            const {added, refused} = await uploader.sendAll(name, files, {caption_from_prompt: 'true'});
            await refreshDatasets();
            await choose(name);
            if (!added.length && refused.length) throw new Error(refused[0].reason);
            return {name, added, refused};
        }

        function fail(error) {
            setText(pathError, error.message);
            show(pathError, true);
        }


        // --- What is done to pictures and captions ------------------------------------------------------------------------

        /** Say what was done and offer to take exactly that back. */
        function done(text) {
            const step = current.history().undo;
            toast(text, {label: 'Undo', act: () => takeBack(step)});
        }

        /** Undo a step if it is still the last one: an offer on the page may be older than what was done since. */
        function takeBack(step) {
            if (current && current.history().undo === step) travel('undo');
            else toast('Something was changed after that. Undo, at the top of the pictures, goes back step by step.');
        }

        async function edit(body) {
            try {
                const edited = await current.bulk(body);
                done(edited.label || 'Captions changed');
            } catch (error) {
                toast(error.message);
            }
        }

        async function trash(filenames) {
            if (!filenames.length) return false;
            try {
                const at = grid.shown().indexOf(filenames[0]);
                await current.trash(filenames);
                if (!detail || !detail.isOpen()) grid.focus(grid.shown()[Math.min(at, grid.shown().length - 1)]);
                done(filenames.length === 1 ? `${filenames[0]} deleted` : `${plural(filenames.length, 'picture')} deleted`);
                refreshDatasets().catch(() => {});
                return true;
            } catch (error) {
                toast(error.message);
                return false;
            }
        }

        async function rotate(filenames, degrees) {
            try {
                await current.rotate(filenames, degrees);
                if (filenames.length > 1) done(`${plural(filenames.length, 'picture')} rotated`);
            } catch (error) {
                toast(error.message);
            }
        }

        /** Undo or redo a step of the data set; ask when files were changed outside since. */
        async function travel(way, ifChanged = 'refuse') {
            if (!current) return;
            try {
                const edited = await current[way](ifChanged);
                toast(`${way === 'undo' ? 'Undone' : 'Redone'}: ${edited.label}`);
                reveal(Object.keys(edited.captions || {}));
            } catch (error) {
                if (/^nothing_to_/.test(error.code)) toast(error.message);
                else if (error.code === 'changed_meanwhile') askAboutConflicts(way, error);
                else toast(error.message);
            }
        }

        async function askAboutConflicts(way, {conflicts}) {
            const answer = await ask({title: 'Changed elsewhere meanwhile',
                text: `${plural(conflicts.length, 'file')} of this step ${conflicts.length === 1 ? 'was' : 'were'} changed since. `
                + 'Leave them as they are now, or put the older text there?', list: conflicts.map(({filename}) => filename),
            answers: [{label: 'Overwrite them', value: 'overwrite'}, {label: 'Leave them', kind: 'primary', value: 'skip'}]});
            if (answer) travel(way, answer);
        }

        function reveal(filenames) {
            const shown = new Set(grid.shown());
            const first = filenames.find((filename) => shown.has(filename));
            if (first && (!detail || !detail.isOpen())) grid.reveal(first);
        }

        /** Ctrl+Z and Ctrl+Y for the whole data set; while something is being typed, the browser's own undo has them. */
        function historyKeys(event) {
            const key = event.key.toLowerCase();
            if (!(event.ctrlKey || event.metaKey) || event.altKey || !['z', 'y'].includes(key) || !current) return false;
            const field = event.target.closest && event.target.closest('textarea, input[type=text], input[type=search], select');
            if (field && !(field.isClean && field.isClean())) return false;
            event.preventDefault();
            travel(key === 'y' || event.shiftKey ? 'redo' : 'undo');
            return true;
        }

        element.addEventListener('keydown', (event) => {
            historyKeys(event);
            if (event.key !== 'Tab') event.stopPropagation();                              // The WebUI listens for keys on the whole page.
        });
        // After a card was deleted or a menu closed nothing has the focus; the keys still mean the pictures, while they are in front.
        document.addEventListener('keydown', (event) => {
            if (event.target === document.body && element.offsetParent !== null && !document.querySelector('dialog[open]')) historyKeys(event);
        });

        function presentHistory() {
            const {undo, redo} = current ? current.history() : {};
            if (captionedStep !== undefined && undo !== captionedStep) {                   // Something was done since: what is said about the captioner is past.
                captionedStep = undefined;
                captioning.dismiss();
            }
            for (const [control, label, name, keys] of [[undoTool, undo, 'Undo', 'Ctrl+Z'], [redoTool, redo, 'Redo', 'Ctrl+Y']]) {
                control.disabled = !label;
                control.title = label ? `${name}: ${label} (${keys})` : `Nothing to ${name.toLowerCase()}`;
                control.setAttribute('aria-label', control.title);
            }
        }

        function offerUnsaved() {
            const left = current ? current.leftover() : [];
            const close = () => show(unsavedBox, false);
            const dataset = current;
            const title = `${plural(left.length, 'caption')} you typed ${left.length === 1 ? 'was' : 'were'} not saved last time`;
            unsavedBox.replaceChildren(h('div.tl-notice-head', {}, h('strong', {}, title)),
                h('ul.tl-list', {}, ...left.map(({filename, text}) => h('li', {}, h('strong', {}, filename), ` ${text || 'no caption'}`))),
                h('div.tl-actions', {}, button('Save', () => { left.forEach(({filename, text}) => dataset.save(filename, text)); close(); }, 'primary'),
                    button('Discard', () => { dataset.forget(left.map(({filename}) => filename)); close(); })));
            show(unsavedBox, left.length > 0);
        }

        function moreItems() {
            const selected = grid.selected();
            const save = (format) => h('a', {href: url(`${current.at()}/captions/export?format=${format}`).href, download: `metadata.${format}`}).click();
            return [{label: 'Captions from a table …', act: () => tableInput.click()}, {label: 'Export metadata.csv', act: () => save('csv')},
                {label: 'Export metadata.jsonl', act: () => save('jsonl')}, null,
                {label: 'Select all shown', hint: 'Ctrl+A', act: () => grid.selectAll(grid.shown())},
                {label: 'Invert the selection', act: () => grid.selectAll(grid.shown().filter((filename) => !selected.includes(filename)))}, null,
                {label: selected.length ? `Delete ${plural(selected.length, 'picture')}` : 'Delete the selected', hint: 'Del', danger: true, disabled: !selected.length,
                    act: () => trash(selected)}];
        }

        const tableInput = h('input', {type: 'file', accept: '.csv,.jsonl,.json', hidden: true, id: 'tl-table-file', onchange: () => {
            const [file] = tableInput.files;
            tableInput.value = '';
            if (file) readTable(file);
        }});
        element.append(tableInput);


        // --- Large view, automatic captions, looks ------------------------------------------------------------------------

        function open(filename) {
            if (!current || !current.picture(filename) || (detail && detail.isOpen())) return;
            detail = openDetail(filename, {dataset: current, grid, actions: {trash, rotate, rename: (from, to) => current.rename(from, to), historyKeys,
                closed: (name) => { detail = null; if (current.picture(name)) grid.focus(name); }}});
        }

        async function automatic(captioner = '') {
            autoButton.disabled = true;
            try {
                await openCaptioning({captioner, dataset: current, grid, triggerWord: settings.trigger_word || '', started: (id) => {
                    captionedStep = undefined;
                    captioning.follow(id);
                    onChange();
                }});
            } catch (error) {
                toast(error.message);
            } finally {
                autoButton.disabled = false;
            }
        }

        /** A captioner that the program's end cut short may go on; asked about once, for the newest of this data set. */
        async function offerToGoOn(dataset) {
            try {
                const job = (await get('jobs?kind=captioning')).find(({config}) => config && config.dataset === dataset.name);
                if (dataset === current && job && job.state === 'interrupted' && !(remembered().interrupted || []).includes(job.id)) captioning.offer(job);
            } catch {
                // Only an offer.
            }
        }

        async function captioned() {
            captionedStep = undefined;
            if (current) await current.load().catch(() => {});
            if (current) captionedStep = current.history().undo;
            onChange();
        }

        function setSize(pixels) {
            size.value = String(pixels);
            element.style.setProperty('--tl-thumb', `${pixels}px`);
        }

        function setWide(on) {
            remember({wide: on});
            wide.replaceChildren(icon(on ? 'shrink' : 'expand'));
            wide.title = on ? 'Beside the training' : 'Use the whole width';
            wide.setAttribute('aria-label', wide.title);
            wide.setAttribute('aria-pressed', String(on));
            onWide(on);
        }

        setSize(Math.min(SIZES.most, Math.max(SIZES.least, Number(remembered().cardSize) || SIZES.first)));
        setWide(Boolean(remembered().wide));


        // --- What the page tells ------------------------------------------------------------------------------------------

        /** Called about once a second while the page is in sight: see every few seconds what changed on disk. */
        async function poll(now = false) {
            if (!current || (!now && Date.now() - polled < POLL_MS)) return;
            polled = Date.now();
            await current.poll();
        }

        function setSettings(next) {
            settings = next;
            if (current) current.setCheckSettings(next);
        }

        return {element, setDatasets, choose, poll, setSettings, receive, name: () => (current ? current.name : ''),
            count: () => (current ? current.size() : 0)};
    }

    return {createPictures};
};
