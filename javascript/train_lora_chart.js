/* The loss curve: every step, their average, what is measured on pictures kept out of training, and a cursor for pointer and keys. */
(window.trainLora = window.trainLora || {parts: {}}).parts.chart = (kit) => {
    'use strict';
    const {h, show, setText, figure} = kit;

    const CHART_HEIGHT_PX = 190;
    const MARGIN = {left: 44, right: 10, top: 10, bottom: 22};

    function createChart() {
        let rows = [];
        let total = 0;
        let cursor = null;
        let waiting = 0;

        const readout = h('span.tl-readout');
        const measuredKey = h('span', {hidden: true}, h('i.tl-key.tl-measured'), 'validation');
        const legend = h('span.tl-legend', {'aria-hidden': 'true'}, h('i.tl-key.tl-strong'), 'average', h('i.tl-key'), 'each step', measuredKey);
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
                const measured = Number.isFinite(row.validation_loss) ? row.validation_loss : null;
                if (Number.isFinite(row.loss)) rows.push({step: row.step, loss: row.loss, average, measured});
            }
            draw();
        }

        function describe() {
            const row = rows[cursor === null ? rows.length - 1 : cursor];
            const measured = measuredIn(rows, cursor === null ? rows.length - 1 : cursor);
            setText(readout, row && cursor !== null ? [`Step ${row.step}`, figure(row.loss), `average ${figure(row.average)}`, measured && `validation ${figure(measured.measured)}`]
                .filter(Boolean).join(' · ') : '');
            show(measuredKey, rows.some((each) => each.measured !== null));
            show(legend, cursor === null && rows.length > 0);
            show(empty, !rows.length);
            canvas.setAttribute('aria-label', rows.length > 1
                ? [`Loss curve: average ${figure(rows[0].average)} at step ${rows[0].step}, ${figure(rows[rows.length - 1].average)} at step ${rows[rows.length - 1].step}`,
                    measured && `validation ${figure(measured.measured)} at step ${measured.step}`].filter(Boolean).join(', ')
                : 'Loss curve, empty');
        }

        /** Draw with the next frame, however many rows came; a page that nobody sees is not drawn. */
        function draw() {
            if (!waiting) waiting = requestAnimationFrame(drawNow);
        }

        function drawNow() {
            waiting = 0;
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

    /** The row up to this one in which something was measured last. */
    function measuredIn(rows, index) {
        for (let at = index; at >= 0; at -= 1) if (rows[at].measured !== null) return rows[at];
        return null;
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
        return {strong: of('--tl-accent'), faint: of('--tl-curve-faint'), measured: of('--tl-curve-measured'), line: of('--tl-border'), text: of('--tl-muted'), font: `11px ${style.fontFamily}`};
    }

    /** The loss values that the axis covers, from a line on: all of the average, and the raw values without the few wildest. */
    function lossRange(rows) {
        const every = Math.ceil(rows.length / 4000);
        const some = rows.filter((_, index) => index % every === 0 || index === rows.length - 1);
        const raw = some.map(({loss}) => loss).sort((a, b) => a - b);
        const averages = [...some.map(({average}) => average), ...rows.filter(({measured}) => measured !== null).map(({measured}) => measured)];
        const at = (share) => raw[Math.min(raw.length - 1, Math.floor(share * raw.length))];
        let low = Math.min(at(0.005), ...extremes(averages));
        let high = Math.max(at(0.985), ...extremes(averages));
        if (high - low < 1e-9) [low, high] = [low - 0.01, high + 0.01];
        const room = (high - low) * 0.06;
        const from = low >= 0 ? Math.max(0, low - room) : low - room;
        const {stride} = ticks(from, high + room, 5);
        return {low: Math.floor(from / stride + 1e-6) * stride, high: high + room, stride};
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
        const {low, high, stride} = lossRange(rows);
        const plot = {left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: CHART_HEIGHT_PX - MARGIN.bottom};
        const x = (step) => plot.left + (plot.right - plot.left) * step / total;
        const y = (loss) => plot.bottom - (plot.bottom - plot.top) * (loss - low) / (high - low);
        paintAxes(pen, {plot, x, y, low, high, stride, total, colours});
        pen.save();
        pen.beginPath();
        pen.rect(plot.left, plot.top, plot.right - plot.left, plot.bottom - plot.top);
        pen.clip();
        const every = Math.max(1, Math.floor(rows.length / (2 * (plot.right - plot.left))));
        trace(pen, rows, every, (row) => [x(row.step), y(row.loss)], colours.faint, 1);
        trace(pen, rows, every, (row) => [x(row.step), y(row.average)], colours.strong, 2);
        const measured = rows.filter((row) => row.measured !== null).map((row) => [x(row.step), y(row.measured)]);
        trace(pen, measured, 1, (point) => point, colours.measured, 2);
        pen.restore();
        if (measured.length <= MOST_DOTS) paintDots(pen, measured, colours.measured);
        if (cursor !== null && rows[cursor]) paintCursor(pen, {plot, at: x(rows[cursor].step), height: y(rows[cursor].average), colours});
    }

    function paintAxes(pen, {plot, x, y, low, high, stride, total, colours}) {
        pen.font = colours.font;
        pen.fillStyle = colours.text;
        pen.strokeStyle = colours.line;
        pen.lineWidth = 1;
        pen.textBaseline = 'middle';
        pen.textAlign = 'right';
        const digits = Math.max(0, Math.min(6, -Math.floor(Math.log10(stride) + 1e-9)));
        for (let tick = low; tick <= high + stride * 1e-6; tick += stride) {
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

    const MOST_DOTS = 60;

    /** Dots where something was measured; whole ones at the edges too. */
    function paintDots(pen, points, colour) {
        pen.fillStyle = colour;
        for (const [left, top] of points) {
            pen.beginPath();
            pen.arc(left, top, 3, 0, 2 * Math.PI);
            pen.fill();
        }
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

    return {createChart};
};
