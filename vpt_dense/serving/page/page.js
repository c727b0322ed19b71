'use strict';
// Sends an image to the server that this page comes from, and draws what its tasks find.
const $ = id => document.getElementById(id);
const KEPT = 12;       // results that stay until the page is closed
const LONGEST = 2048;  // pixels of an edge that are drawn; of larger images rows are left out
const DEPTHS = [[48, 18, 59], [64, 91, 209], [37, 158, 226], [41, 211, 160], [141, 236, 77],
  [226, 206, 57], [249, 138, 39], [207, 63, 8], [122, 4, 3]];  // near to far
let key = '', tasks = [], image = null, current = null, busy = false;
const past = [];

// --- the server ---------------------------------------------------------------------------

async function ask(path, options = {}) {
  const headers = key ? {Authorization: `Bearer ${key}`} : {};
  for (let attempt = 0; ; attempt += 1) {
    let answer;
    try {
      answer = await fetch(path, {...options, headers, cache: 'no-store'});
    } catch {
      throw new Error('The server cannot be reached.');
    }
    if (answer.ok) return answer.json();
    const content = await answer.json().catch(() => ({}));
    const text = content.error || `The server answers ${answer.status}.`;
    if ((answer.status === 429 || answer.status === 503) && attempt < 4) {
      const seconds = Math.min(Number(answer.headers.get('Retry-After')) || 2 ** attempt, 30);
      say(`The server is busy; once more in ${seconds} s …`);
      await new Promise(done => setTimeout(done, 1000 * seconds));
      continue;
    }
    const error = new Error(text);
    error.status = answer.status;
    throw error;
  }
}

async function fetchTasks() {
  try {
    const content = await ask('v1/tasks');
    tasks = content.tasks;
    $('about').textContent =
      `${tasks.length} task${tasks.length === 1 ? '' : 's'} on one frozen backbone`;
    $('lock').hidden = !key;
    fail('');
  } catch (error) {
    $('about').textContent = error.status === 401 || error.status === 403
      ? 'This server wants a key.' : 'No tasks.';
    refused(error);
    return;
  }
  listTasks();
}

function refused(error) {
  const locked = error.status === 401 || error.status === 403;
  if (locked) $('lock').hidden = false;
  // Without a key nothing is wrong yet: the field says what is wanted.
  fail(locked && !key ? '' : error.message);
}

// --- tasks --------------------------------------------------------------------------------

function listTasks() {
  const chosen = new Set(wanted());
  const first = !$('tasks').children.length;
  $('tasks').replaceChildren(...tasks.map((task, i) => {
    const row = make('li'), label = make('label'), box = make('input');
    Object.assign(box, {type: 'checkbox', name: 'task', value: task.name, autocomplete: 'off',
      checked: first ? i === 0 : chosen.has(task.name)});
    const classes = task.classes.length ? `: ${few(task.classes)}` : '';
    label.append(box, make('span', task.name), make('small', task.kind + classes));
    row.append(label);
    return row;
  }));
  $('no-tasks').hidden = tasks.length > 0;
  ready();
}

const few = names => names.length > 6
  ? `${names.slice(0, 5).join(', ')} and ${names.length - 5} more` : names.join(', ');
const wanted = () =>
  [...document.querySelectorAll('input[name=task]:checked')].map(box => box.value);
const ready = () => { $('predict').disabled = busy || !image || !wanted().length; };

// --- the image ----------------------------------------------------------------------------

function choose(file) {
  if (!file) return;
  image = file;
  $('chosen').textContent = file.name;
  fail('');
  ready();
  if (wanted().length) predict();
  else say(`${file.name} is chosen; choose a task.`);
}

async function predict() {
  const names = wanted(), file = image;
  if (busy || !file || !names.length) return;
  busy = true;
  ready();
  fail('');
  say(`Predicting ${file.name} …`);
  $('result').setAttribute('aria-busy', 'true');
  try {
    const query = new URLSearchParams([...names.map(name => ['task', name]), ['format', 'json']]);
    const body = new FormData();
    body.append('images', file, file.name);
    const started = performance.now();
    const content = await ask(`v1/predict?${query}`, {method: 'POST', body});
    const seconds = (performance.now() - started) / 1000;
    const entry = {name: file.name, layers: [], seconds};
    for (const result of content.results) entry.layers.push(await read(result));
    const maps = entry.layers.filter(layer => layer.width);
    // A format that this browser does not know, such as TIFF: maps are shown without the picture.
    entry.picture = await createImageBitmap(file).catch(() => null);
    const size = maps[0] || entry.picture || {width: 4, height: 3};
    [entry.width, entry.height] = [size.width, size.height];
    keep(entry);
    show(entry);
    say(`${file.name}, ${seconds.toFixed(2)} s. ${entry.layers.map(told).join(' ')}`
      + (entry.picture ? '' : ' This browser cannot show images of this format.'));
  } catch (error) {
    say('');
    refused(error);
  } finally {
    busy = false;
    $('result').removeAttribute('aria-busy');
    ready();
  }
}

function told(layer) {
  const part = layer.kind === 'segmentation' || layer.kind === 'classification'
    ? rows(layer).slice(0, 3).map(row => `${row.name} ${row.text}`).join(', ')
    : layer.kind === 'depth' ? `${metres(layer.low)} to ${metres(layer.high)}` : layer.kind;
  return `${layer.task}: ${part}.`;
}

// --- reading answers ----------------------------------------------------------------------

async function read(result) {
  const task = tasks.find(each => each.name === result.task) || {classes: [], palette: null};
  const layer = {
    task: result.task, kind: result.kind, width: result.width, height: result.height,
    classes: task.classes, palette: task.palette || task.classes.map((_, i) => hue(i)),
    scores: result.scores, shares: result.shares};
  if (result.kind === 'segmentation') {
    layer.file = bytes(result.labels_png);
    const labels = await readPng(layer.file);
    Object.assign(layer, {values: labels.values, step: labels.step});
    check(labels.width, labels.height, result);
    layer.suffix = 'png';
  } else if (result.kind !== 'classification') {
    layer.file = bytes(result.values_npy);
    const array = readNpy(layer.file);
    check(array.shape[1], array.shape[0], result);
    layer.values = array.values;
    layer.suffix = 'npy';
    if (result.kind === 'depth') {
      [layer.low, layer.high] = [Infinity, -Infinity];
      for (const value of array.values) {
        if (value < layer.low) layer.low = value;
        if (value > layer.high) layer.high = value;
      }
    }
  } else {
    layer.file = new TextEncoder().encode(JSON.stringify(result.scores, null, 2) + '\n');
    layer.suffix = 'json';
  }
  return layer;
}

function check(width, height, result) {
  if (width !== result.width || height !== result.height) {
    throw new Error(`The answer of ${result.task} does not have the size that it says.`);
  }
}

const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const hue = i => {  // colours of classes that have none: golden angle
  const turn = (i * 137.508) % 360;
  return [0, 8, 4].map(n => {
    const k = (n + turn / 30) % 12;
    return Math.round(255 * (0.52 - 0.34 * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  });
};

// A grey PNG of 8 or 16 bits, to the number: a canvas would cut 16 bits, and may change colours.
async function readPng(file) {
  const view = new DataView(file.buffer);
  const parts = [];
  let width, height, depth;
  for (let at = 8; at < file.length;) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...file.subarray(at + 4, at + 8));
    const part = file.subarray(at + 8, at + 8 + length);
    if (kind === 'IHDR') {
      [width, height, depth] = [view.getUint32(at + 8), view.getUint32(at + 12), part[8]];
      if (part[9] !== 0 || part[12] !== 0 || (depth !== 8 && depth !== 16)) {
        throw new Error('The label map is no grey PNG of 8 or 16 bits.');
      }
    } else if (kind === 'IDAT') parts.push(part);
    at += 12 + length;
  }
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream('deflate'));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const step = depth / 8, row = width * step;
  if (raw.length !== height * (row + 1)) throw new Error('The label map is damaged.');
  const out = new Uint8Array(height * row);
  for (let y = 0; y < height; y += 1) {
    const filter = raw[y * (row + 1)], from = y * (row + 1) + 1, to = y * row;
    for (let x = 0; x < row; x += 1) {
      const left = x >= step ? out[to + x - step] : 0;
      const up = y ? out[to + x - row] : 0;
      const corner = y && x >= step ? out[to + x - row - step] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = up;
      else if (filter === 3) guess = (left + up) >> 1;
      else if (filter === 4) {
        const sum = left + up - corner;
        const [a, b, c] = [Math.abs(sum - left), Math.abs(sum - up), Math.abs(sum - corner)];
        guess = a <= b && a <= c ? left : b <= c ? up : corner;
      }
      out[to + x] = raw[from + x] + guess;
    }
  }
  if (depth === 8) return {width, height, step, values: out};
  const values = new Uint16Array(width * height);
  for (let i = 0; i < values.length; i += 1) values[i] = out[2 * i] << 8 | out[2 * i + 1];
  return {width, height, step, values};
}

function readNpy(file) {
  const view = new DataView(file.buffer);
  const long = file[6] > 1;
  const start = (long ? 12 : 10) + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  const head = new TextDecoder().decode(file.subarray(long ? 12 : 10, start));
  const shape = (/'shape': \(([\d, ]+)\)/.exec(head) || ['', ''])[1].match(/\d+/g)?.map(Number);
  if (!shape || !head.includes("'<f4'") || head.includes("'fortran_order': True")) {
    throw new Error('The map of numbers is not of 32 bits.');
  }
  return {shape, values: new Float32Array(file.buffer.slice(start))};
}

// --- drawing ------------------------------------------------------------------------------

function paint(layer) {
  const step = Math.ceil(Math.max(layer.width, layer.height) / LONGEST);
  const width = Math.ceil(layer.width / step), height = Math.ceil(layer.height / step);
  const pixels = new ImageData(width, height);
  const {values, palette, kind} = layer;
  const range = layer.high - layer.low || 1;
  for (let y = 0, to = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, to += 4) {
      const from = y * step * layer.width + x * step;
      let colour;
      if (kind === 'segmentation') colour = palette[values[from]];
      else if (kind === 'depth') colour = ramp((values[from] - layer.low) / range);
      else colour = [0, 1, 2].map(i => 127.5 * (values[3 * from + i] + 1));
      if (colour) {
        pixels.data.set(colour, to);
        pixels.data[to + 3] = 255;
      }
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext('2d').putImageData(pixels, 0, 0);
  return canvas;
}

function ramp(part) {
  const place = Math.min(Math.max(part, 0), 1) * (DEPTHS.length - 1);
  const low = Math.min(Math.floor(place), DEPTHS.length - 2);
  return DEPTHS[low].map((value, i) => value + (DEPTHS[low + 1][i] - value) * (place - low));
}

function copy(source, canvas) {
  canvas.width = source.width;
  canvas.height = source.height;
  canvas.getContext('2d').drawImage(source, 0, 0);
}

function drawPicture(entry, canvas, longest) {
  const scale = Math.min(1, longest / Math.max(entry.width, entry.height));
  canvas.width = Math.max(1, Math.round(entry.width * scale));
  canvas.height = Math.max(1, Math.round(entry.height * scale));
  if (entry.picture) {
    canvas.getContext('2d').drawImage(entry.picture, 0, 0, canvas.width, canvas.height);
  }
}

// --- the result ---------------------------------------------------------------------------

function show(entry) {
  current = entry;
  $('empty').hidden = true;
  $('shown').hidden = false;
  const maps = entry.layers.filter(layer => layer.width);
  drawPicture(entry, $('picture'), LONGEST);
  $('picture').setAttribute('aria-label', `${entry.name}, ${entry.width} × ${entry.height} pixels`);
  const tall = 640 * entry.width / entry.height;
  const large = Math.max(entry.width, 360);  // small images are enlarged, but not to the full width
  $('stack').style.aspectRatio = `${entry.width} / ${entry.height}`;
  $('stack').style.maxWidth = `${Math.round(Math.min(tall, Math.max(large, 3 * entry.width)))}px`;
  $('stack').classList.toggle('small', Math.max(entry.width, entry.height) < 400);
  for (const id of ['left', 'right']) {
    const options = [['', 'image'], ...maps.map(layer => [layer.task, layer.task])];
    $(id).replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  }
  $('left').value = maps.length > 1 ? maps[0].task : '';
  $('right').value = maps.length > 1 ? maps[1].task : maps.length ? maps[0].task : '';
  for (const id of ['toolbar', 'wipe', 'probe', 'divider', 'tag-left', 'tag-right']) {
    $(id).hidden = !maps.length;
  }
  $('cross').hidden = true;
  entry.place = null;
  $('readout').textContent =
    'Move over the image, or focus this line and use the arrow keys.';
  sides();
  $('cards').replaceChildren(...entry.layers.map(card));
  for (const button of $('history').querySelectorAll('button')) {
    button.setAttribute('aria-current', String(button.entry === entry));
  }
}

function sides() {
  for (const id of ['left', 'right']) {
    const layer = current.layers.find(each => each.width && each.task === $(id).value);
    $(`tag-${id}`).textContent = layer ? layer.task : 'image';
    const canvas = $(`layer-${id}`);
    canvas.hidden = !layer;
    if (layer) {
      layer.drawn ??= paint(layer);
      copy(layer.drawn, canvas);
    }
  }
}

function rows(layer) {
  const found = layer.kind === 'classification'
    ? layer.scores.map(row => ({name: row.class, part: row.score}))
    : layer.classes.map((name, i) => ({
      name, part: layer.shares[name] ?? 0, colour: layer.palette[i]}));
  const sorted = found.sort((a, b) => b.part - a.part);
  const used = sorted.filter(row => row.part > 0);
  return (used.length ? used : sorted).map(row => ({...row, text: percent(row.part)}));
}

const percent = part => part > 0 && part < 0.001 ? '< 0.1 %' : `${(100 * part).toFixed(1)} %`;
const metres = value => `${value.toFixed(2)} m`;

function card(layer) {
  const box = make('section', '', 'card');
  const title = make('h3', layer.task);
  box.append(title, make('p', layer.kind, 'note'));
  if (layer.kind === 'depth') {
    const bar = make('div', '', 'ramp'), ends = make('div', '', 'ends');
    bar.style.background = `linear-gradient(90deg, ${DEPTHS.map(rgb).join(', ')})`;
    ends.append(make('span', metres(layer.low)), make('span', metres(layer.high)));
    box.append(bar, ends);
  } else if (layer.kind === 'normals') {
    box.append(make('p', 'Red, green and blue are x, y and z.', 'note'));
  } else {
    const list = make('ul', '', 'legend');
    list.tabIndex = 0;
    list.setAttribute('aria-label', layer.kind === 'classification'
      ? `Scores of ${layer.task}` : `Classes of ${layer.task} and their shares of the image`);
    list.append(...rows(layer).slice(0, layer.kind === 'classification' ? 5 : undefined).map(row => {
      const line = make('li'), swatch = make('i', '', 'swatch');
      if (row.colour) swatch.style.background = rgb(row.colour);
      const meter = make('span', '', 'meter'), inner = make('i');
      meter.setAttribute('aria-hidden', 'true');
      inner.style.setProperty('--part', `${100 * row.part}%`);
      meter.append(inner);
      line.append(row.colour ? swatch : make('i'), make('span', row.name),
        make('span', row.text, 'value'), meter);
      return line;
    }));
    box.append(list);
  }
  const what = {png: 'label map (PNG)', npy: 'map (NPY)', json: 'scores (JSON)'}[layer.suffix];
  const save = make('button', `Download ${what}`, 'save');
  save.type = 'button';
  save.setAttribute('aria-label', `Download ${what} of ${layer.task}`);
  const stem = current.name.replace(/\.[^.]*$/, '');
  save.addEventListener('click', () => download(layer.file, `${stem}.${layer.task}.${layer.suffix}`));
  box.append(save);
  return box;
}

const rgb = colour => `rgb(${colour.map(Math.round).join(' ')})`;

function download(content, name) {
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([content]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- what is at a place -------------------------------------------------------------------

function point(x, y, withCross) {
  const place = [Math.min(Math.max(x, 0), current.width - 1),
    Math.min(Math.max(y, 0), current.height - 1)];
  current.place = place;
  const at = place[1] * current.width + place[0];
  const found = current.layers.filter(
    layer => layer.width === current.width && layer.height === current.height).map(layer => {
    if (layer.kind === 'segmentation') {
      return `${layer.task}: ${layer.classes[layer.values[at]] ?? 'no data'}`;
    }
    if (layer.kind === 'depth') return `${layer.task}: ${metres(layer.values[at])}`;
    const vector = [0, 1, 2].map(i => layer.values[3 * at + i].toFixed(2));
    return `${layer.task}: (${vector.join(', ')})`;
  });
  $('readout').textContent = `${found.join(' · ')} (${place.join(', ')})`;
  $('cross').hidden = !withCross;
  if (withCross) {
    $('cross').style.left = `${100 * (place[0] + 0.5) / current.width}%`;
    $('cross').style.top = `${100 * (place[1] + 0.5) / current.height}%`;
  }
}

// --- earlier results ----------------------------------------------------------------------

function keep(entry) {
  const row = make('li'), button = make('button'), canvas = make('canvas');
  button.type = 'button';
  button.entry = entry;
  drawPicture(entry, canvas, 232);
  const drawn = entry.layers.find(layer => layer.width);
  if (drawn) {
    drawn.drawn ??= paint(drawn);
    const context = canvas.getContext('2d');
    context.globalAlpha = 0.5;
    context.drawImage(drawn.drawn, 0, 0, canvas.width, canvas.height);
  }
  const names = entry.layers.map(layer => layer.task).join(', ');
  button.append(canvas, make('span', entry.name), make('span', names));
  button.setAttribute('aria-label', `Show ${entry.name} again: ${names}`);
  button.addEventListener('click', () => {
    show(entry);
    say(`${entry.name}. ${entry.layers.map(told).join(' ')}`);
  });
  row.append(button);
  $('history').prepend(row);
  past.unshift(entry);
  if (past.length > KEPT) {
    past.pop().picture?.close();
    $('history').lastElementChild.remove();
  }
  $('past').hidden = past.length < 2;
}

// --- small things -------------------------------------------------------------------------

function make(name, text = '', kind = '') {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}
function say(text) { $('status').textContent = text; }
function fail(text) {
  $('error').textContent = text;
  $('error').hidden = !text;
}
function unlock() {
  key = $('key').value.trim();
  if (/[^\x21-\x7e]/.test(key)) {
    key = '';
    fail('A key has letters and digits only.');
    return;
  }
  fetchTasks();
}

$('ask').addEventListener('submit', event => { event.preventDefault(); predict(); });
$('tasks').addEventListener('change', ready);
$('unlock').addEventListener('click', unlock);
$('key').addEventListener('keydown', event => {
  if (event.key === 'Enter') { event.preventDefault(); unlock(); }
});
$('file').addEventListener('change', () => choose($('file').files[0]));
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  addEventListener(kind, event => {
    event.preventDefault();  // a file that misses the place would replace the page
    $('drop').classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop') choose(event.dataTransfer.files[0]);
  });
}
addEventListener('paste', event => choose(event.clipboardData?.files[0]));
$('left').addEventListener('change', sides);
$('right').addEventListener('change', sides);
$('wipe').addEventListener('input', () => {
  $('stack').style.setProperty('--cut', `${$('wipe').value}%`);
});
$('alpha').addEventListener('input', () => {
  $('stack').style.setProperty('--alpha', $('alpha').value / 100);
});
$('stack').addEventListener('pointermove', event => {
  if (!current || $('probe').hidden) return;
  const box = $('stack').getBoundingClientRect();
  point(Math.floor((event.clientX - box.left) / box.width * current.width),
    Math.floor((event.clientY - box.top) / box.height * current.height), false);
});
$('probe').addEventListener('keydown', event => {
  const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  if (!move || !current) return;
  event.preventDefault();
  const far = Math.max(1, Math.round(Math.max(current.width, current.height) / (event.shiftKey ? 10 : 100)));
  const [x, y] = current.place ?? [current.width >> 1, current.height >> 1];
  const first = !current.place;  // the first key shows where it is
  point(x + (first ? 0 : far * move[0]), y + (first ? 0 : far * move[1]), true);
});
$('probe').addEventListener('blur', () => { $('cross').hidden = true; });
addEventListener('focus', () => { if (tasks.length && !busy) fetchTasks(); });
fetchTasks();
