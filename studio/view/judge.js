// Videos side by side under one clock: a moment is shown when every player has it, and in all of them at once.
const KEPT = 8, PATIENCE = 1000;

const startJudge = (root) => {
  if (root.dataset.state) return;
  root.dataset.state = 'loading';
  const find = (name) => root.querySelector(name), all = (name) => [...root.querySelectorAll(name)];
  const fps = Number(root.dataset.fps), count = Number(root.dataset.count), say = JSON.parse(root.dataset.say);
  const scrub = find('[data-scrub]'), wipe = find('[data-wipe]'), over = find('[data-over]'), at = find('[data-at]');
  const brush = over.getContext('2d');
  let shown = -1, wanted = 0, isSeeking = false, isPlaying = false, speed = 1, mode = 'side', lastShown = -1;

  const canvas = (width, height, options) => {
    const made = Object.assign(document.createElement('canvas'), {width, height});
    return made.getContext('2d', options);
  };
  const panes = all('[data-src]').map((video) => {
    const {width, height, dataset: {rate, frames}} = video;
    const brushes = Array.from({length: KEPT}, () => ({frame: -1, brush: canvas(width, height)}));
    return {video, fps: Number(rate), count: Number(frames), kept: brushes, brush: video.nextElementSibling.getContext('2d')};
  });
  const longest = panes.reduce((a, b) => (b.count / b.fps > a.count / a.fps ? b : a));

  // A frame of the clock is the same moment in videos of other rates; a shorter one waits at its last frame.
  const frameOf = (pane, n) => Math.min(pane.count - 1, Math.floor((n + 0.5) / fps * pane.fps));
  const held = (pane, n) => pane.kept.find(({frame}) => frame === frameOf(pane, n));
  const hasAll = (n) => panes.every((pane) => held(pane, n));
  const keep = (pane, frame) => {
    const slot = pane.kept[frame % KEPT];
    slot.frame = frame;
    slot.brush.drawImage(pane.video, 0, 0);
  };

  const colors = JSON.parse(root.dataset.heat), most = Number(root.dataset.most);
  const heat = Array.from({length: 3 * 255 + 1}, (_, sum) => {
    const place = Math.min(1, sum / 3 / most) * (colors.length - 1), low = Math.min(Math.floor(place), colors.length - 2);
    const [red, green, blue] = colors[low].map((level, channel) =>
      Math.round(level + (colors[low + 1][channel] - level) * (place - low)));
    return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
  });
  const readers = [0, 1].map(() => canvas(over.width, over.height, {willReadFrequently: true}));

  const chosen = () => ['first', 'second'].map((name, index) => Number(find(`[data-choose=${name}]`)?.value ?? index));

  const drawWipe = (left, right) => {
    const {width, height} = over, edge = Math.round(width * wipe.value / 1000);
    brush.drawImage(right, 0, 0, width, height);
    if (edge) brush.drawImage(left, 0, 0, left.width * edge / width, left.height, 0, 0, edge, height);
    find('.judge-edge').style.left = `${wipe.value / 10}%`;
  };

  const drawHeat = (left, right) => {
    const {width, height} = over;
    const [a, b] = [left, right].map((picture, index) => {
      readers[index].drawImage(picture, 0, 0);
      return readers[index].getImageData(0, 0, width, height);
    });
    const [one, other, pixels] = [a.data, b.data, new Uint32Array(a.data.buffer)];
    for (let i = 0, p = 0; p < pixels.length; i += 4, p++) {
      pixels[p] = heat[Math.abs(one[i] - other[i]) + Math.abs(one[i + 1] - other[i + 1])
        + Math.abs(one[i + 2] - other[i + 2])];
    }
    brush.putImageData(a, 0, 0);
  };

  const drawOver = () => {
    if (mode === 'side' || shown < 0) return;
    const [left, right] = chosen().map((index) => panes[index].brush.canvas);
    (mode === 'wipe' ? drawWipe : drawHeat)(left, right);
  };

  const draw = (n) => {
    shown = n;
    panes.forEach((pane) => pane.brush.drawImage(held(pane, n).brush.canvas, 0, 0));
    drawOver();
    const text = say.at.replace('{n}', n + 1).replace('{count}', count).replace('{s}', (n / fps).toFixed(2).replace('.', say.decimal));
    at.textContent = text;
    scrub.value = n;
    scrub.setAttribute('aria-valuetext', text);
    all('[data-now]').forEach((line) => { line.setAttribute('x1', n); line.setAttribute('x2', n); });
    root.dataset.frame = n;
  };

  const go = (pane, n) => new Promise((done) => {
    const frame = frameOf(pane, n);
    pane.kept.forEach((slot) => { slot.frame = -1; });
    pane.video.addEventListener('seeked', () => { keep(pane, frame); done(); }, {once: true});
    // The middle of the frame: no rounding leads to its neighbour.
    pane.video.currentTime = (frame + 0.5) / pane.fps;
  });

  const seek = async (n) => {
    wanted = Math.min(count - 1, Math.max(0, n));
    if (isSeeking) return;
    isSeeking = true;
    for (let sought = -1; sought !== wanted;) {
      sought = wanted;
      await Promise.all(panes.map((pane) => go(pane, sought)));
      draw(sought);
    }
    isSeeking = false;
  };

  const run = () => panes.forEach((pane) => {
    pane.video.playbackRate = speed;
    // A play that a pause cuts short is no error.
    pane.video.play().catch(() => {});
  });

  const label = () => {
    const button = find('[data-do=play]');
    button.setAttribute('aria-label', isPlaying ? say.pause : say.play);
    button.title = isPlaying ? say.pause : say.play;
    root.dataset.playing = isPlaying;
  };

  const pause = () => {
    if (!isPlaying) return;
    isPlaying = false;
    label();
    panes.forEach((pane) => pane.video.pause());
  };

  const play = async () => {
    isPlaying = true;
    label();
    await seek(shown >= count - 1 ? 0 : shown);
    if (isPlaying) run();
  };

  const again = async (n) => {
    panes.forEach((pane) => pane.video.pause());
    await seek(n);
    if (isPlaying) run();
  };

  const show = (n) => { pause(); return seek(n); };
  const step = (by) => show((isSeeking ? wanted : shown) + by);

  const follow = (pane) => pane.video.requestVideoFrameCallback((_, {mediaTime}) => {
    const frame = Math.round(mediaTime * pane.fps);
    if (isPlaying && !isSeeking) {
      keep(pane, frame);
      for (let n = Math.min(count - 1, Math.round(longest.video.currentTime * fps) + 1); n > shown; n--) {
        if (hasAll(n)) { draw(n); break; }
      }
    } else if (frame === frameOf(pane, isSeeking ? wanted : shown)) {
      keep(pane, frame);
      if (!isSeeking && hasAll(shown)) draw(shown);
    }
    follow(pane);
  });

  // Where one player lags so far that they never have a moment in common, all meet where the slowest is.
  const timer = setInterval(() => {
    if (!root.isConnected) { clearInterval(timer); pause(); panes.forEach(({video}) => URL.revokeObjectURL(video.src)); }
    else if (isPlaying && !isSeeking && !document.hidden && shown === lastShown) {
      again(Math.floor(Math.min(...panes.filter(({video}) => !video.ended).map(({video}) => video.currentTime)) * fps));
    }
    lastShown = shown;
  }, PATIENCE);

  const setMode = (name) => {
    mode = name;
    root.dataset.mode = mode;
    all('[data-mode-of]').forEach((button) => button.setAttribute('aria-pressed', button.dataset.modeOf === mode));
    find('.judge-over').hidden = mode === 'side';
    find('.judge-chosen').hidden = mode === 'side' || panes.length < 3;
    find('.judge-panes').hidden = mode !== 'side';
    all('[data-only]').forEach((part) => { part.hidden = part.dataset.only !== mode; });
    const [left, right] = chosen();
    all('[data-tag]').forEach((tag) => { tag.textContent = say.titles[tag.dataset.tag === 'first' ? left : right]; });
    drawOver();
  };

  const wipeAt = (event) => {
    if (mode !== 'wipe' || !(event.buttons & 1)) return;
    const box = over.getBoundingClientRect();
    wipe.value = 1000 * (event.clientX - box.left) / box.width;
    drawOver();
  };

  const actions = {play: () => (isPlaying ? show(shown) : play()), back: () => step(-1), next: () => step(1)};
  root.addEventListener('click', (event) => {
    const {do: action, modeOf} = event.target.closest('button')?.dataset ?? {};
    if (action) actions[action]();
    if (modeOf) setMode(modeOf);
  });
  root.addEventListener('keydown', (event) => {
    const {target, key} = event;
    const isOthers = event.altKey || event.ctrlKey || event.metaKey || target.closest('select, a, summary');
    if (isOthers || root.dataset.state !== 'ready') return;
    const moves = {ArrowLeft: -1, ArrowRight: 1, Home: -count, End: count};
    if (key === ' ' && !target.closest('button')) actions.play();
    else if (key in moves && target !== wipe) step(moves[key]);
    else return;
    event.preventDefault();
  });
  scrub.addEventListener('input', () => show(Number(scrub.value)));
  wipe.addEventListener('input', drawOver);
  over.addEventListener('pointerdown', wipeAt);
  over.addEventListener('pointermove', wipeAt);
  root.addEventListener('change', (event) => {
    if (event.target.matches('[data-choose]')) setMode(mode);
    if (event.target.matches('[data-speed]')) {
      speed = Number(event.target.value);
      panes.forEach(({video}) => { video.playbackRate = speed; });
    }
  });
  longest.video.addEventListener('ended', () => { if (isPlaying) again(0); });

  const load = async ({video}) => {
    const ready = new Promise((done, fail) => {
      video.addEventListener('loadeddata', done, {once: true});
      video.addEventListener('error', () => fail(video.error), {once: true});
    });
    // All of it in memory: a player that waits for the network would hold up the others.
    const response = await fetch(video.dataset.src);
    if (!response.ok) throw new Error(response.statusText);
    video.src = URL.createObjectURL(await response.blob());
    await ready;
  };
  Promise.all(panes.map(load)).then(() => {
    panes.forEach(follow);
    root.dataset.state = 'ready';
    all('[disabled]').forEach((part) => { part.disabled = false; });
    return seek(0);
  }).catch(() => {
    root.dataset.state = 'failed';
    find('.judge-failed').hidden = false;
  });
};
