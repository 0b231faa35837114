import { app } from "../../scripts/app.js";

// The newer renderer takes whatever a node with a VIDEO input shows for a video, unless the node says what it is.
const SHOWS_IMAGES = "FlashLipsPreviewTrack";
// Lip Sync got its choice of what happens to the seed after a run later than its other widgets; saved values are a list.
const SEEDED = "FlashLipsLipSync";
const SEED_AT = 3; // face, length, lip_motion, seed

/** Older workflows keep their values: the new one gets its own place. @param {{nodes?: any[], definitions?: any}} graph */
function makeRoomForSeedControl(graph) {
    const inner = graph.definitions?.subgraphs ?? [];
    for (const node of [graph, ...inner].flatMap((part) => part.nodes ?? [])) {
        const values = node.type === SEEDED ? node.widgets_values : null;
        if (Array.isArray(values) && typeof values[SEED_AT + 1] === "boolean") values.splice(SEED_AT + 1, 0, "fixed");
    }
}

app.registerExtension({
    name: "FlashLips",
    beforeConfigureGraph: makeRoomForSeedControl,
    nodeCreated(node) {
        if (node.comfyClass === SHOWS_IMAGES) node.previewMediaType = "image";
    },
});
