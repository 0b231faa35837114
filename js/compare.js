import { app } from "../../scripts/app.js";
import {
    actionOf, clamp, correction, frameAt, isOnLine, label, looped, mouthAt, places, shareAt, shownPart, timeOf,
} from "./compare_math.js";
import { CSS, words } from "./compare_look.js";

const NODE = "FlashLipsCompareVideo";
const RESULT = "flashlips_compare";
const HEIGHT = 340; // px that the node gives the player at least

/** Players that are alive; tests look that it empties. @type {Set<Player>} */
export const players = new Set();

/** Two videos in step on one canvas, with a bar of controls. */
export class Player {
    constructor() {
        this.words = words(app.ui?.settings?.getSettingValue?.("Comfy.Locale"));
        this.ended = new AbortController();
        this.view = "wipe";
        this.share = 0.5;
        this.zoom = false;
        this.offset = { x: 0, y: 0 };
        this.sound = "after";
        this.data = { fps: 25, frames: 0, mouths: [], every: 1 };
        this.range = { start: 0, stop: 0 };
        this.root = element("div", "flashlips-compare", { tabIndex: 0 });
        this.stage = this.root.appendChild(element("div", "stage"));
        this.canvas = this.stage.appendChild(element("canvas", ""));
        this.note = this.stage.appendChild(element("div", "note", { textContent: this.words.empty }));
        this.videos = [this.makeVideo(), this.makeVideo()];
        this.makeBar();
        this.listen();
        this.watcher = new ResizeObserver(() => this.draw());
        this.watcher.observe(this.stage);
        players.add(this);
    }

    makeVideo() {
        const video = document.createElement("video");
        Object.assign(video, { muted: true, preload: "auto", playsInline: true });
        for (const event of ["loadeddata", "seeked"]) this.on(video, event, () => this.draw());
        this.on(video, "error", () => video.getAttribute("src") && this.say(this.words.broken));
        return video;
    }

    makeBar() {
        const bar = this.root.appendChild(element("div", "bar"));
        const button = (name, text, does) => {
            const made = bar.appendChild(element("button", "", { textContent: text, title: this.words[name], type: "button" }));
            made.setAttribute("aria-label", this.words[name]);
            this.on(made, "click", does);
            return made;
        };
        this.slider = element("input", "time", { type: "range", min: 0, max: 0, step: 1, value: 0, title: this.words.time });
        this.buttons = {
            play: button("play", "▶", () => this.act("play")),
            back: button("back", "|◀", () => this.act("back")),
            on: button("on", "▶|", () => this.act("on")),
        };
        bar.appendChild(this.slider);
        this.time = bar.appendChild(element("span", "label", { textContent: label(0, 0, 25) }));
        bar.appendChild(element("span", "break"));
        Object.assign(this.buttons, {
            wipe: button("wipe", this.words.wipeShort, () => this.act("wipe")),
            side: button("side", this.words.sideShort, () => this.act("side")),
            zoom: button("zoom", this.words.zoomShort, () => this.act("zoom")),
            in: button("in", "[", () => this.act("in")),
            out: button("out", "]", () => this.act("out")),
            mute: button("mute", this.words.soundAfter, () => this.act("mute")),
        });
        this.on(this.slider, "input", () => this.seek(Number(this.slider.value)));
    }

    listen() {
        this.on(this.root, "keydown", (event) => {
            const action = event.ctrlKey || event.metaKey || event.altKey ? null : actionOf(event.key);
            if (!action || (event.target === this.slider && event.key.startsWith("Arrow"))) return;
            event.preventDefault();
            event.stopPropagation(); // these keys mean other things to the graph
            this.act(action);
        });
        this.on(this.canvas, "pointerdown", (event) => this.press(event));
        this.on(this.canvas, "pointermove", (event) => this.move(event));
        this.on(this.canvas, "pointerup", () => this.release());
        this.on(this.canvas, "pointercancel", () => (this.held = null));
        this.on(this.root, "pointerdown", (event) => event.stopPropagation()); // the node stays where it is
    }

    /** A listener that ends with the player. */
    on(target, event, does) {
        target.addEventListener(event, does, { signal: this.ended.signal });
    }

    /** Show what the node has made. */
    load(data) {
        this.data = { ...this.data, ...data };
        this.range = { start: 0, stop: Math.max(this.data.frames - 1, 0) };
        this.offset = { x: 0, y: 0 };
        this.note.hidden = true;
        this.stop();
        for (const [video, file] of [[this.videos[0], data.before], [this.videos[1], data.after]]) {
            video.src = app.api.apiURL(`/view?${new URLSearchParams(file)}`);
        }
        this.slider.max = String(this.range.stop);
        this.hear();
        this.seek(0);
    }

    get frame() {
        return frameAt(this.leader.currentTime, this.data.fps, this.data.frames);
    }

    /** The video that is heard: the other one follows, so that sound never changes its speed. */
    get leader() {
        return this.videos[this.sound === "before" ? 0 : 1];
    }

    act(action) {
        const { start, stop } = this.range;
        if (action === "play") this.playing ? this.stop() : this.play();
        else if (action === "back") this.seek(this.frame - 1);
        else if (action === "on") this.seek(this.frame + 1);
        else if (action === "first") this.seek(start);
        else if (action === "last") this.seek(stop);
        else if (action === "in") this.range = { start: start ? 0 : this.frame, stop: Math.max(stop, this.frame) };
        else if (action === "out") {
            this.range = { start: Math.min(start, this.frame), stop: this.isOpen() ? this.frame : this.data.frames - 1 };
        }
        else if (action === "zoom") this.zoom = !this.zoom;
        else if (action === "mute") {
            this.sound = { after: "before", before: "none", none: "after" }[this.sound];
            this.videos.forEach((video) => (video.playbackRate = 1));
            this.hear();
        } else this.view = action;
        this.draw();
    }

    isOpen() {
        return this.range.stop >= this.data.frames - 1;
    }

    hear() {
        this.videos[0].muted = this.sound !== "before";
        this.videos[1].muted = this.sound !== "after";
    }

    async play() {
        if (!this.data.frames) return;
        if (this.frame >= this.range.stop) this.seek(this.range.start);
        this.playing = true;
        try {
            await Promise.all(this.videos.map((video) => video.play()));
            this.follow();
        } catch (error) {
            this.stop();
            if (error.name !== "AbortError") this.say(`${this.words.broken} ${error.message}`); // stopped before it began
        }
    }

    stop() {
        this.playing = false;
        cancelAnimationFrame(this.beat);
        for (const video of this.videos) {
            video.pause();
            video.playbackRate = 1;
        }
        this.draw();
    }

    /** While playing: keep the second video with the first, stay in the range, draw. */
    follow() {
        if (!this.playing) return;
        const { leader } = this;
        const follower = this.videos.find((video) => video !== leader);
        const frame = frameAt(leader.currentTime, this.data.fps, Infinity);
        const start = leader.ended ? this.range.start : looped(frame, this.range);
        if (start !== null) {
            this.seek(start, false);
            if (leader.ended || leader.paused) this.videos.forEach((video) => video.play().catch(() => {}));
        } else if (!follower.seeking && !follower.ended) {
            const { jump, rate } = correction(leader.currentTime, follower.currentTime, this.data.fps);
            if (jump) follower.currentTime = leader.currentTime;
            follower.playbackRate = rate;
        }
        this.draw();
        this.beat = requestAnimationFrame(() => this.follow());
    }

    /** Show one frame of both. */
    seek(frame, stops = true) {
        if (stops && this.playing) this.stop();
        const wanted = clamp(Math.round(frame), 0, Math.max(this.data.frames - 1, 0));
        for (const video of this.videos) video.currentTime = timeOf(wanted, this.data.fps);
        this.draw();
    }

    press(event) {
        this.root.focus({ preventScroll: true });
        this.canvas.setPointerCapture(event.pointerId);
        const [x, y] = this.pointer(event);
        const [box] = this.boxes();
        const isLine = this.view === "wipe" && isOnLine(x, y, this.share, box);
        this.held = { line: isLine, x, y, offset: { ...this.offset }, moved: false };
    }

    move(event) {
        const [x, y] = this.pointer(event);
        const [box] = this.boxes();
        const { held } = this;
        const isNear = this.view === "wipe" && isOnLine(x, y, this.share, box);
        this.canvas.style.cursor = held?.line || isNear ? "ew-resize" : this.zoom ? "move" : "pointer";
        if (!held) return;
        held.moved ||= Math.hypot(x - held.x, y - held.y) > 3;
        if (held.line) this.share = shareAt(x, box);
        else if (this.zoom) {
            const part = this.part();
            this.offset = {
                x: held.offset.x - ((x - held.x) / box.width) * part.width,
                y: held.offset.y - ((y - held.y) / box.height) * part.height,
            };
        } else if (this.view === "wipe" && held.moved) this.share = shareAt(x, box);
        this.draw();
    }

    release() {
        if (this.held && !this.held.moved) this.act("play");
        this.held = null;
    }

    /** Where the pointer is in the canvas's pixels, whatever the graph's zoom. */
    pointer(event) {
        const shown = this.canvas.getBoundingClientRect();
        const scale = this.canvas.width / shown.width;
        return [(event.clientX - shown.left) * scale, (event.clientY - shown.top) * scale];
    }

    get aspect() {
        const [video] = this.videos;
        return video.videoWidth ? video.videoWidth / video.videoHeight : 1;
    }

    part() {
        if (!this.zoom) return shownPart(null, this.aspect);
        const mouth = mouthAt(this.data.mouths, this.data.every, this.frame) ?? { x: 0.5, y: 0.6, side: 0.3 };
        return shownPart({ ...mouth, x: mouth.x + this.offset.x, y: mouth.y + this.offset.y }, this.aspect);
    }

    boxes() {
        return places(this.view, this.zoom ? 1 : this.aspect, this.canvas.width, this.canvas.height);
    }

    draw() {
        const width = Math.round(this.stage.clientWidth * devicePixelRatio);
        const height = Math.round(this.stage.clientHeight * devicePixelRatio);
        if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
        const pen = this.canvas.getContext("2d");
        pen.clearRect(0, 0, width, height);
        if (this.data.frames) {
            const boxes = this.boxes();
            const part = this.part();
            this.videos.forEach((video, index) => this.drawVideo(pen, video, boxes[index], part, index));
            if (this.view === "wipe") this.drawLine(pen, boxes[0]);
            this.drawNames(pen, boxes);
        }
        this.update();
    }

    drawVideo(pen, video, box, part, index) {
        if (video.readyState < 2) return;
        const { videoWidth: wide, videoHeight: high } = video;
        pen.save();
        pen.beginPath();
        const split = this.view === "wipe" && index ? box.width * this.share : 0;
        pen.rect(box.x + split, box.y, box.width - split, box.height);
        pen.clip();
        const source = [part.x * wide, part.y * high, part.width * wide, part.height * high];
        pen.drawImage(video, ...source, box.x, box.y, box.width, box.height);
        pen.restore();
    }

    drawLine(pen, box) {
        const x = box.x + box.width * this.share;
        pen.lineWidth = 2 * devicePixelRatio;
        pen.strokeStyle = "rgba(255, 255, 255, 0.9)";
        pen.shadowColor = "rgba(0, 0, 0, 0.8)";
        pen.shadowBlur = 4;
        pen.beginPath();
        pen.moveTo(x, box.y);
        pen.lineTo(x, box.y + box.height);
        pen.stroke();
        pen.beginPath();
        pen.arc(x, box.y + box.height / 2, 6 * devicePixelRatio, 0, 2 * Math.PI);
        pen.fillStyle = "white";
        pen.fill();
        pen.shadowBlur = 0;
    }

    drawNames(pen, boxes) {
        const size = 12 * devicePixelRatio;
        pen.font = `${size}px sans-serif`;
        pen.textBaseline = "middle";
        const right = pen.measureText(this.words.after).width;
        const [left, other] = boxes;
        const edge = this.view === "wipe" ? other.x + other.width - right - 1.5 * size : other.x;
        for (const [name, x, y] of [[this.words.before, left.x, left.y], [this.words.after, edge, other.y]]) {
            pen.fillStyle = "rgba(0, 0, 0, 0.6)";
            pen.fillRect(x, y, pen.measureText(name).width + 1.5 * size, 1.7 * size);
            pen.fillStyle = "white";
            pen.fillText(name, x + 0.75 * size, y + 0.85 * size);
        }
    }

    update() {
        const { frames, fps } = this.data;
        this.slider.value = String(this.frame);
        const last = Math.max(frames - 1, 1);
        this.slider.style.setProperty("--from", `${(100 * this.range.start) / last}%`);
        this.slider.style.setProperty("--to", `${(100 * this.range.stop) / last}%`);
        this.time.textContent = label(this.frame, frames, fps);
        this.buttons.play.textContent = this.playing ? "⏸" : "▶";
        const { view, zoom, range } = this;
        const pressed = { wipe: view === "wipe", side: view === "side", zoom, in: range.start > 0, out: !this.isOpen() };
        for (const [name, isOn] of Object.entries(pressed)) this.buttons[name].setAttribute("aria-pressed", String(isOn));
        const { soundAfter, soundBefore, soundOff } = this.words;
        this.buttons.mute.textContent = { after: soundAfter, before: soundBefore, none: soundOff }[this.sound];
    }

    say(text) {
        Object.assign(this.note, { textContent: text, hidden: false });
    }

    /** Nothing of it is left: no listener, no frame asked for, no file open. */
    close() {
        this.stop();
        this.ended.abort();
        this.watcher.disconnect();
        for (const video of this.videos) {
            video.removeAttribute("src");
            video.load();
        }
        players.delete(this);
    }
}

function element(name, className, properties = {}) {
    return Object.assign(document.createElement(name), { className }, properties);
}

function addStyle() {
    if (document.getElementById("flashlips-compare-style")) return;
    document.head.appendChild(element("style", "", { id: "flashlips-compare-style", textContent: CSS }));
}

/** @param {any} node a LiteGraph node of this kind */
function addPlayer(node) {
    const player = new Player();
    const widget = node.addDOMWidget("player", "flashlips_compare", player.root, {
        serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getValue: () => "", setValue() {},
    });
    widget.serialize = false;
    const { onExecuted, onRemoved } = node;
    node.onExecuted = function (output) {
        onExecuted?.apply(this, arguments);
        if (output?.[RESULT]?.[0]) player.load(output[RESULT][0]);
    };
    node.onRemoved = function () {
        player.close();
        onRemoved?.apply(this, arguments);
    };
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, 420), Math.max(height, 480)]);
}

app.registerExtension({
    name: "FlashLips.Compare",
    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        addStyle();
        addPlayer(node);
    },
});
