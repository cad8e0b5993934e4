/* Step 3, train: what the run will be, the button that starts it or puts it into the queue, the run in front, and what waits. */
(window.trainLora = window.trainLora || {parts: {}}).parts.training = (kit) => {
    'use strict';
    const {h, show, setText, button, iconButton, card, plural, duration, bigNumber, bytes, post, feed, isTraining, isCancelled, nameOf, amountOf, createJobView, createQueue,
        createNotifier, remembered, refreshCards, ServerError} = kit;

    const NO_PLAN = {pictures: 0, buckets: [], steps: 0, trainable_parameters: null, warnings: [], advice: [], errors: []};

    /** Ask for a plan. A config that the server refuses outright is a plan with that one error. */
    async function planFor(config) {
        try {
            return {...NO_PLAN, ...await post('plan', {config})};
        } catch (error) {
            if (!(error instanceof ServerError) || error.offline || error.status >= 500) throw error;
            return {...NO_PLAN, errors: [{code: error.code, field: error.field, message: error.message}]};
        }
    }

    /** Find a name like `name` that no LoRA has: cat, cat-2, cat-3. */
    async function findFreeName(name, config, {sameFirst = false} = {}) {
        const [, base, number] = /^(.*?)(?:-(\d+))?$/.exec(name);
        const first = Number(number || 1) + 1;
        const candidates = [...(sameFirst ? [name] : []), ...Array.from({length: 99}, (_, index) => `${base}-${first + index}`)];
        for (const candidate of candidates) {
            const answer = await planFor({...config, output_name: candidate, overwrite: false}).catch(() => null);
            if (!answer || !answer.errors.some(({code}) => code === 'name_taken')) return candidate;
        }
        return `${base}-${Date.now()}`;
    }

    /** What the plan says, in two lines and its warnings; `remedy` makes the buttons that set one right. */
    function createPlan({remedies}) {
        const main = h('p.tl-plan-main');
        const more = h('p.tl-muted');
        const warnings = h('ul.tl-list.tl-warn-list', {hidden: true});
        const element = h('div.tl-plan', {}, main, more, warnings);

        function present(plan) {
            const good = plan && plan.steps > 0 && plan.pictures > 0;
            const time = good && duration(plan.estimated_seconds);
            setText(main, good ? [plural(plan.steps, 'step'), time && `about ${time}`].filter(Boolean).join(' · ') : 'Nothing planned yet');
            main.classList.toggle('tl-muted', !good);
            setText(more, good ? [plural(plan.pictures, 'picture'), plan.regularisation_pictures && `${plan.regularisation_pictures} for regularisation`,
                plan.validation_pictures && `${plan.validation_pictures} only measured`, plural(plan.buckets.length, 'bucket'),
                plan.trainable_parameters && `${bigNumber(plan.trainable_parameters)} trainable parameters`,
                plan.estimated_memory_bytes && `${bytes(plan.estimated_memory_bytes)} for weights and optimizer`].filter(Boolean).join(' · ') : '');
            more.title = good ? plan.buckets.map((bucket) => `${bucket.width} × ${bucket.height}: ${plural(bucket.pictures, 'picture')}`).join('\n') : '';
            const list = (good && plan.warnings) || [];
            const advice = plan ? plan.advice || [] : [];
            warnings.replaceChildren(...list.map((text) => h('li', {}, text, remedies(advice.filter(({message}) => message === text)))));
            show(warnings, list.length > 0);
        }

        return {element, present};
    }

    /** `look()` plans again: what was wrong may have been mended meanwhile. */
    function createTrain({config, settings, tryTag, look}) {
        let model = null;
        let plan = null;
        let starting = false;
        let askedName = '';
        let freeName = '';
        let usedName = '';                                                                 // What was started from here; that this name is taken is no news.
        let ended = '';                                                                    // The run that ended last, perhaps before it was seen at work.

        const planBox = createPlan({remedies: settings.remedies});
        const train = h('button.tl-button.tl-primary.tl-large', {type: 'button', id: 'tl-train', 'aria-describedby': 'tl-reasons', onclick: () => press()}, 'Train');
        const trainLine = h('div.tl-train-line', {onpointerenter: () => train.disabled && look(), onclick: () => train.disabled && look()}, train);
        const reasons = h('ul.tl-reasons', {id: 'tl-reasons'});
        const takenText = h('p');
        const replace = button('Replace it', () => begin({overwrite: true}));
        const rename = button('Save under another name', () => saveAs());
        const takenBox = h('div.tl-notice', {hidden: true, role: 'group', 'aria-label': 'The name is taken'}, takenText,
            h('div.tl-actions', {}, replace, rename, iconButton('Cancel', 'Change nothing', () => { show(takenBox, false); train.focus(); })));
        const startError = h('p.tl-error', {role: 'alert', hidden: true});
        const elsewhere = h('p.tl-elsewhere', {hidden: true, role: 'status'});
        const view = createJobView({tryTag});
        const queue = createQueue();
        const notifier = createNotifier();

        const element = card(3, 'Train', planBox.element, trainLine, reasons, takenBox, startError, notifier.note, elsewhere, queue.element, view.element);
        element.querySelector('.tl-card-head').append(h('span.tl-spring'), notifier.element);

        /** Whether a new run would wait for others. */
        const busy = () => Boolean(feed.current()) || feed.queue().length > 0;

        function setModel(value) {
            model = value;
            presentButton();
        }

        function setPlan(value) {
            plan = value;
            if (settings.value('output_name') !== askedName) show(takenBox, false);
            if (blocking().some(({message}) => message === startError.textContent)) show(startError, false);
            planBox.present(plan);
            presentButton();
        }

        const errors = () => (plan ? plan.errors : []);
        /** Errors that keep the run from starting; a taken name is none, it is asked about. */
        const blocking = () => errors().filter(({code}) => code !== 'name_taken');

        function presentButton() {
            const obstacles = model && !model.trainable ? [{message: model.reason || 'The loaded model cannot be trained.'}] : blocking();
            train.disabled = starting || !model || !plan || obstacles.length > 0;
            setText(train, starting ? (busy() ? 'Adding …' : 'Starting …') : busy() ? 'Add to queue' : 'Train');
            train.classList.toggle('tl-primary', !busy());
            reasons.replaceChildren(...(starting ? [] : obstacles).map(({message, remedies = []}) => h('li', {}, message, settings.remedies(remedies))));
            show(reasons, !starting && obstacles.length > 0);
            if (starting) show(takenBox, false);
        }

        /** The name may have changed since the plan was made; the server looks at it again, then. */
        function press() {
            const taken = plan.name === settings.value('output_name') && errors().find(({code}) => code === 'name_taken');
            if (taken) return askName(taken.message);
            return begin({});
        }

        async function askName(message) {
            askedName = settings.value('output_name');
            setText(takenText, message);
            setText(rename, 'Save under another name');
            rename.disabled = true;
            show(replace, /Replace it/.test(message));                                     // Not one of the name in another folder.
            show(takenBox, true);
            (replace.hidden ? rename : replace).focus();
            freeName = await findFreeName(askedName, config());
            setText(rename, `Save as ${freeName}`);
            rename.disabled = false;
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
                usedName = extra.output_name || settings.value('output_name');
                settings.setErrors(fieldErrors());
                await feed.fetch(id);
            } catch (error) {
                if (error.code === 'name_taken') askName(error.message);
                else {
                    setText(startError, error.message);
                    show(startError, true);
                    if (error.field) settings.setErrors([{field: error.field, message: error.message}]);
                    look();
                }
            } finally {
                starting = false;
                presentButton();
            }
        }

        /** The run at work is in front; while there is none, the one that was there last. */
        function present() {
            const current = feed.current();
            const newest = feed.over().find((job) => isTraining(job) && !isCancelled(job));
            const cut = newest && newest.state === 'interrupted' ? newest : null;         // Another browser, or the first look after a crash.
            const last = feed.job(ended || (view.current() || {}).id || remembered().job) || cut;
            const shown = current && isTraining(current) ? current : last && isTraining(last) && last.state !== 'queued' ? last : null;
            if (current) ended = '';
            if (shown) view.present(shown);
            else view.hide();
            const [first, second] = shown && shown === current ? [view, queue] : [queue, view];            // What works comes first, else what waits.
            if (first.element.nextSibling !== second.element) first.element.after(second.element);
            const captioning = current && !isTraining(current);
            setText(elsewhere, captioning ? `Captions are being written for ${nameOf(current)}${current.total > 0 ? ` (${amountOf(current)})` : ''}. What you add starts after that.` : '');
            show(elsewhere, Boolean(captioning));
            presentButton();
        }

        feed.hear((kind, job) => {
            if (kind === 'jobs' || kind === 'job') present();
            if (kind !== 'ended' || !isTraining(job)) return;
            if (job.step || job.state !== 'stopped') ended = job.id;
            present();
            if (job.lora_tag) refreshCards();
        });

        /** What the plan says, as it belongs at the fields. */
        const fieldErrors = () => errors().filter(({code}) => code !== 'name_taken' || settings.value('output_name') !== usedName)
            .map((error) => ({...error, soft: error.code === 'name_taken'}));

        return {element, setModel, setPlan, fieldErrors, present, busy: () => Boolean(feed.current())};
    }

    return {createTrain, planFor, findFreeName, NO_PLAN};
};
