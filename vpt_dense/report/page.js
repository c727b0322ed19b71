'use strict';
// Tables: a click on a heading sorts by its column, a second one the other way. Dashes stay last.
for (const table of document.querySelectorAll('table.sortable')) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const order = new Intl.Collator(undefined, {numeric: true});
  headings.forEach((heading, column) => {
    heading.querySelector('button').addEventListener('click', () => {
      const numeric = heading.classList.contains('num');
      const known = heading.getAttribute('aria-sort');
      const next = known === 'none' ? (numeric ? 'descending' : 'ascending')
        : known === 'ascending' ? 'descending' : 'ascending';
      const sign = next === 'ascending' ? 1 : -1;
      headings.forEach(other => other.setAttribute('aria-sort', 'none'));
      heading.setAttribute('aria-sort', next);
      const key = row => {
        const cell = row.cells[column];
        if (numeric) return 'value' in cell.dataset ? Number(cell.dataset.value) : null;
        return 'empty' in cell.dataset ? null : cell.textContent;
      };
      const rows = [...body.rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
        : sign * (numeric ? a - b : order.compare(a, b)));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
// Pictures: what is on either side, where the divider is, how strong the colours are.
for (const viewer of document.querySelectorAll('.viewer')) {
  const sides = [...viewer.querySelectorAll('select')];
  const wipes = [...viewer.querySelectorAll('.wipe')];
  const alpha = viewer.querySelector('[data-alpha]');
  const show = () => {
    const chosen = {};
    for (const side of sides) {
      chosen[side.dataset.side] = side.value;
      for (const tag of viewer.querySelectorAll(`.tag.${side.dataset.side}`)) {
        tag.textContent = side.selectedOptions[0].textContent;
      }
    }
    for (const layer of viewer.querySelectorAll('.layer')) {
      layer.classList.toggle('left', layer.dataset.layer === chosen.left);
      layer.classList.toggle('right', layer.dataset.layer === chosen.right);
    }
    for (const score of viewer.querySelectorAll('[data-score]')) {
      score.hidden = !Object.values(chosen).includes(score.dataset.score);
    }
  };
  const divide = value => {
    viewer.style.setProperty('--cut', `${value}%`);
    for (const wipe of wipes) wipe.value = value;
  };
  const colour = () => viewer.style.setProperty('--alpha', alpha.value / 100);
  sides.forEach(side => side.addEventListener('change', show));
  wipes.forEach(wipe => wipe.addEventListener('input', () => divide(wipe.value)));
  alpha.addEventListener('input', colour);
  show();
  colour();
}
