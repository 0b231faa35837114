/** What was before: the widget's texts, newest last. Pure, tested by node. */

const MOST = 200; // steps that are kept

export class History {
    /** @param {string} text What there is now. */
    constructor(text) {
        this.reset(text);
    }

    /** Forget everything: another workflow was opened. */
    reset(text) {
        this.past = [];
        this.future = [];
        this.text = text;
        this.mark = null;
    }

    /**
     * A new text. Steps of one mark in a row, such as the positions of one drag, are one step.
     * @param {string} text
     * @param {string|null} mark
     */
    push(text, mark = null) {
        if (text === this.text) return;
        if (mark === null || mark !== this.mark) {
            this.past.push(this.text);
            if (this.past.length > MOST) this.past.shift();
        }
        this.future = [];
        this.text = text;
        this.mark = mark;
    }

    /** The drag is over: the next step is one of its own. */
    settle() {
        this.mark = null;
    }

    /** @returns {string|null} The text before, or null where there is none. */
    undo() {
        return this.#step(this.past, this.future);
    }

    /** @returns {string|null} The text that was undone. */
    redo() {
        return this.#step(this.future, this.past);
    }

    #step(from, to) {
        if (!from.length) return null;
        to.push(this.text);
        this.text = from.pop();
        this.mark = null;
        return this.text;
    }
}
