// A drag across the curve looks closer, a double click shows all again, a press on a mark opens it; keys press marks too.
const REACH = 20, LEAST = 8;
let drag = null;

const plotBox = () => element.querySelector('#plot-area')?.getBoundingClientRect();

const end = () => {
  drag?.band.remove();
  drag = null;
};

const place = (x) => {
  const {box, low, high} = drag;
  const share = Math.min(1, Math.max(0, (x - box.left) / box.width));
  return low + share * (high - low);
};

element.addEventListener('pointerdown', (event) => {
  const box = plotBox();
  if (!box || event.button || !event.isPrimary) return;
  const isOver = event.clientX >= box.left && event.clientX <= box.right
    && event.clientY >= box.top && event.clientY <= box.bottom;
  if (!isOver) return;
  const [low, high] = element.querySelector('[data-range]').dataset.range.split(',').map(Number);
  const band = document.createElement('div');
  band.className = 'chart-band';
  // The chart may be drawn anew meanwhile: the band and what it measures do not belong to it.
  document.body.append(band);
  drag = {box, low, high, band, x: event.clientX};
  element.setPointerCapture(event.pointerId);
});

element.addEventListener('pointermove', (event) => {
  if (!drag) return;
  const x = Math.min(drag.box.right, Math.max(drag.box.left, event.clientX));
  const [left, right] = [Math.min(x, drag.x), Math.max(x, drag.x)];
  drag.band.style.cssText =
    `left:${left}px;width:${right - left}px;top:${drag.box.top}px;height:${drag.box.height}px`;
});

element.addEventListener('pointerup', (event) => {
  if (!drag) return;
  if (Math.abs(event.clientX - drag.x) >= LEAST) {
    trigger('select', {span: [place(drag.x), place(event.clientX)].sort((a, b) => a - b)});
  }
  end();
});

element.addEventListener('pointercancel', end);
document.addEventListener('keydown', (event) => event.key === 'Escape' && end());

element.addEventListener('dblclick', (event) => {
  const box = plotBox();
  if (box && event.clientY <= box.bottom) trigger('double_click', {});
});

const open = (mark) => {
  const [, kind, step] = mark.id.split('-');
  trigger('click', {[kind]: Number(step)});
  if (kind === 'sample') document.querySelector('#run-samples')?.scrollIntoView({block: 'nearest'});
};

element.addEventListener('click', (event) => {
  const box = plotBox();
  if (!box || event.clientY <= box.bottom) return;
  // A mark is smaller than a thumb: the nearest one is meant.
  let nearest = null, least = REACH;
  element.querySelectorAll('.marker').forEach((mark) => {
    const m = mark.getBoundingClientRect();
    const far = Math.hypot(m.left + m.width / 2 - event.clientX, m.top + m.height / 2 - event.clientY);
    if (far < least) [nearest, least] = [mark, far];
  });
  if (nearest) open(nearest);
});

element.addEventListener('keydown', (event) => {
  const mark = event.target.closest('.marker');
  if (!mark || !['Enter', ' '].includes(event.key)) return;
  event.preventDefault();
  open(mark);
});
