"use strict";
const scans = JSON.parse(document.getElementById("scans-data").textContent);
const table = document.querySelector(".scans"), body = table.tBodies[0], rows = [...body.rows];
const find = (name) => document.getElementById(name);

// ---- the table: sort by a column, filter by words
table.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  const head = button.parentElement, column = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => { const text = row.cells[column].textContent; return text === "" || isNaN(text) ? text : Number(text); };
  const compare = (a, b) => (a === "") - (b === "") || (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1); // the empty ones last
  rows.sort((a, b) => compare(value(a), value(b)));
  body.append(...rows);
}));
const applyFilter = () => {
  const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  find("count").textContent = `${shown} of ${rows.length} scan${rows.length === 1 ? "" : "s"}`;
};
find("filter").addEventListener("input", applyFilter);
applyFilter();

// ---- the viewer
const dialog = find("viewer");
const physical = (byte) => (byte / 127.5 - 1) * scans.half + scans.middle;
const GREY = { colormap: "gray", cal_min: scans.window[0], cal_max: scans.window[1] };
const MASK = { cal_min: 0.5, cal_max: 1 };
const OWN = Object.values(scans.volumes).some((scan) => scan.own); // the scan in its own space below, maps on a grid of theirs
// from the bottom up; NiiVue names volumes by their files, so a layer is known by its place
const LAYERS = [
  { name: OWN ? "scan" : "input", opacity: 1, options: GREY },
  { name: "reconstruction", opacity: 1, options: GREY },
  { name: "residual", opacity: 0.75, options: { colormap: "brighter", colormapNegative: "darker", cal_max: scans.limit } },
  { name: "standardised", opacity: 0.75, options: { colormap: "brighter", colormapNegative: "darker", cal_max: scans.deviations } },
  ...(OWN ? [] : [
    { name: "lesion", opacity: 0.9, options: { colormap: "green", ...MASK } },
    { name: "displaced", opacity: 0.35, options: { colormap: "violet", ...MASK } },
  ]),
  { name: "brain", opacity: 0.25, options: { colormap: "blue", ...MASK } },
];
let viewer = null, current = null;
const details = [...dialog.querySelectorAll(".details")];

async function unzip(text) {
  const zipped = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([zipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function unpack(scan) {
  const bytes = await unzip(scan.data), count = bytes.length / 4;
  const image = Float32Array.from(bytes.subarray(0, count), physical);
  const reconstruction = Float32Array.from(bytes.subarray(count, 2 * count), physical);
  const bits = bytes.subarray(3 * count);
  return {
    ...(scan.own ? { scan: Float32Array.from(await unzip(scan.own.data), physical) } : {}),
    input: image,
    reconstruction,
    residual: image.map((value, i) => (bits[i] & 1 ? value - reconstruction[i] : 0)),
    standardised: Float32Array.from(bytes.subarray(2 * count, 3 * count), (byte) => (byte - 128) / 127 * scans.deviations),
    brain: Float32Array.from(bits, (b) => b & 1),
    lesion: Float32Array.from(bits, (b) => (b & 2) / 2),
    displaced: Float32Array.from(bits, (b) => (b & 4) / 4),
  };
}

// a NIfTI-1 file of 32-bit floats, which is what NiiVue reads
function nifti(values, scan, name) {
  const buffer = new ArrayBuffer(352 + 4 * values.length), view = new DataView(buffer);
  view.setInt32(0, 348, true);
  [3, ...scan.shape, 1, 1, 1, 1].forEach((n, i) => view.setInt16(40 + 2 * i, n, true));
  view.setInt16(70, 16, true);
  view.setInt16(72, 32, true);
  const size = [0, 1, 2].map((j) => Math.hypot(...[0, 1, 2].map((i) => scan.affine[i][j])));
  [1, ...size].forEach((n, i) => view.setFloat32(76 + 4 * i, n, true));
  view.setFloat32(108, 352, true);
  view.setFloat32(112, 1, true);
  view.setUint8(123, 2);
  view.setInt16(254, 1, true);
  scan.affine.flat().forEach((n, i) => view.setFloat32(280 + 4 * i, n, true));
  [110, 43, 49].forEach((c, i) => view.setUint8(344 + i, c));
  new Float32Array(buffer, 352).set(values);
  return new File([buffer], `${name}.nii`);
}

// one colour, the more opaque the farther from 0
const ramp = ([r, g, b]) => ({ R: [r, r], G: [g, g], B: [b, b], A: [0, 255], I: [0, 255] });

// a value in physical units: whole HU, of z a decimal; what lies beyond ends that a byte can hold is known no better
const told = (value) => value.toFixed(scans.half < 20 ? 1 : 0);
const within = (value, [low, high], text) => (value >= high ? `\u2265 ${text(high)}` : value <= low ? `\u2264 ${text(low)}` : text(value));
const grey = (value) => within(value, [physical(0), physical(255)], told);
const spreads = (value) => within(value, [-scans.deviations, scans.deviations], (v) => v.toFixed(1));
const has = (layer) => (scans.volumes[current]?.layers ?? []).includes(layer);

// what lies under the crosshair, in physical units
function tell({ values, mm }) {
  if (values.length < 4) return;
  const [image, reconstruction, residual, deviation] = values.map((v) => v.value);
  const difference = OWN ? residual : image - reconstruction;
  const seen = OWN && residual ? ` (${grey(reconstruction + residual)} as the detector saw it, which is coarser)` : "";
  const words = [`${LAYERS[0].name} ${grey(image)} ${scans.unit}${seen}`];
  if (has("residual")) words.push(`reconstruction ${grey(reconstruction)}`, `residual ${told(difference)}`);
  if (has("standardised")) words.push(`${spreads(deviation)} healthy spreads`);
  const place = [...mm].slice(0, 3).map((v) => Math.round(v)).join(", ");
  find("values").textContent = `${words.join(", ")}, at ${place} mm (${OWN ? "of the scan" : "MNI"})`;
}

async function show(id) {
  if (!Object.keys(scans.volumes).length && !details.length) return;
  const scan = scans.volumes[id];
  current = id;
  const row = rows.find((r) => r.dataset.id === id);
  find("viewer-title").textContent = row.dataset.title;
  find("closed").hidden = Boolean(scan) || row.dataset.maps === "no";
  details.forEach((part) => { part.hidden = part.dataset.id !== id; });
  find("closed-id").textContent = id;
  dialog.querySelectorAll(".stage, .tools").forEach((part) => { part.hidden = !scan; });
  dialog.querySelectorAll("[data-layer]").forEach((part) => { part.hidden = !part.dataset.layer.split(" ").some(has); });
  if (!dialog.open) dialog.showModal();
  if (!scan) { dialog.dataset.shown = id; return; }
  if (!viewer) {
    viewer = new niivue.Niivue({ backColor: [0, 0, 0, 1], crosshairWidth: OWN ? 1 : 0.2, crosshairColor: [1, 1, 1, 0.6], logLevel: OWN ? "error" : "warn" /* gantry tilt is no fault of a scan */, isRadiologicalConvention: true });
    await viewer.attachToCanvas(find("canvas"));
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    viewer.addColormap("brighter", ramp(scans.red));
    viewer.addColormap("darker", ramp(scans.blue));
    viewer.onLocationChange = tell;
  }
  const maps = await unpack(scan);
  if (current !== id) return;
  while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[viewer.volumes.length - 1]);
  for (const { name, options } of LAYERS) {
    viewer.addVolume(await niivue.NVImage.loadFromFile({ file: nifti(maps[name], name === "scan" ? scan.own : scan, name), ...options }));
  }
  settle();
  lookAt((scan.own ?? scan).finding);
  dialog.dataset.shown = id;
}

function lookAt(voxel) {
  viewer.scene.crosshairPos = viewer.vox2frac(voxel);
  viewer.updateGLVolume();
  viewer.createOnLocationChange();
}

function lookAtCluster(event) {
  const row = event.target.closest("tr[data-place]");
  if (!row || !viewer) return;
  lookAt(JSON.parse(row.dataset.place));
  find("canvas").scrollIntoView({ block: "nearest" });
}

function settle() {
  if (!viewer || viewer.volumes.length < LAYERS.length) return;
  const limit = { residual: Number(find("threshold").value), standardised: Number(find("deviation")?.value ?? scans.deviations) };
  find("threshold-value").textContent = `${told(limit.residual)} ${scans.unit}`;
  if (find("deviation")) find("deviation-value").textContent = `${limit.standardised} healthy spreads`;
  LAYERS.forEach((layer, i) => {
    const box = find(`show-${layer.name}`), volume = viewer.volumes[i];
    const there = !document.querySelector(`[data-layer~="${layer.name}"]`) || has(layer.name);
    volume.opacity = i && !(box?.checked && there) ? 0 : layer.opacity; // of the lowest there is no box
    if (layer.name in limit) { volume.colormapType = 1; /* clear below the threshold */ volume.cal_min = limit[layer.name]; volume.cal_minNeg = -layer.options.cal_max; volume.cal_maxNeg = -limit[layer.name]; }
  });
  viewer.updateGLVolume();
}

function step(by) {
  const open = rows.filter((row) => !row.hidden && (details.length || scans.volumes[row.dataset.id] || row.dataset.id === current));
  const place = open.findIndex((row) => row.dataset.id === current);
  if (open.length) show(open[(place + by + open.length) % open.length].dataset.id);
}

body.addEventListener("click", (event) => show(event.target.closest("tr").dataset.id));
body.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault(); // else the same key presses the button that the dialog puts in focus
  show(event.target.closest("tr").dataset.id);
});
dialog.querySelectorAll("input").forEach((input) => input.addEventListener("input", settle));
dialog.addEventListener("click", lookAtCluster);
dialog.addEventListener("keydown", (event) => { if (event.key === "Enter") lookAtCluster(event); });
dialog.addEventListener("close", () => rows.find((row) => row.dataset.id === current)?.focus());
addEventListener("beforeprint", () => document.querySelectorAll("img").forEach((image) => { image.loading = "eager"; }));
find("close").addEventListener("click", () => dialog.close());
find("previous").addEventListener("click", () => step(-1));
find("next").addEventListener("click", () => step(1));
dialog.addEventListener("keydown", (event) => {
  if (event.target.type === "range") return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); step(event.key === "ArrowLeft" ? -1 : 1); }
});
