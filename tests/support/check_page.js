// Run in a page: what a reader would see is wrong with it, as JSON in an element of its own.
(() => {
  const found = [], root = document.documentElement, width = root.clientWidth;
  for (const d of document.querySelectorAll("details")) d.open = true;
  if (root.scrollWidth > width + 1) found.push(`overflow: the page is ${root.scrollWidth} wide, the window ${width}`);

  const texts = [];  // {name, element, boxes}
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement, name = node.data.trim().slice(0, 40);
    if (!name || element.closest("script,style,title,desc")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const drawn = element.closest("text") ? [element.closest("text").getBoundingClientRect()] : [...range.getClientRects()];
    const boxes = drawn.filter(b => b.width > 0 && b.height > 0);
    if (boxes.length) texts.push({name, element, boxes});
  }

  const apart = 2;  // pixels that boxes may share: a box is higher than its letters
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > apart
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > apart;
  texts.forEach((a, i) => texts.slice(i + 1).forEach(b => {
    if (a.boxes.some(x => b.boxes.some(y => meet(x, y)))) found.push(`overlap: "${a.name}" and "${b.name}"`);
  }));

  for (const {name, element, boxes} of texts) {
    for (let e = element; e; e = e.parentElement) {
      const clips = e instanceof SVGSVGElement || e === root || getComputedStyle(e).overflowX !== "visible";
      if (!clips) continue;
      const edge = e === root ? {left: 0, right: width, top: -1e9, bottom: 1e9} : e.getBoundingClientRect();
      if (boxes.some(b => b.left < edge.left - 1 || b.right > edge.right + 1 || b.top < edge.top - 1 || b.bottom > edge.bottom + 1))
        found.push(`clipped: "${name}" by <${e.tagName}>`);
    }
    const svg = element.closest("svg");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = scale * parseFloat(getComputedStyle(element).fontSize);
    if (size < 10.5) found.push(`small: "${name}" has ${size.toFixed(1)} pixels`);
    const ratio = contrast(element, boxes[0]);
    if (ratio < 4.5) found.push(`contrast: "${name}" has ${ratio.toFixed(1)}`);
  }

  function contrast(element, box) {
    const style = getComputedStyle(element), drawn = element.closest("text");
    const light = [luminance(drawn ? style.fill : style.color), luminance(ground(element, box, style))].sort((a, b) => b - a);
    return (light[0] + 0.05) / (light[1] + 0.05);
  }
  function ground(element, box, style) {  // the colour below a text
    if (element.closest("text") && style.paintOrder.startsWith("stroke") && style.stroke !== "none") return style.stroke;
    if (element.closest("text"))
      for (const e of document.elementsFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2))
        if (e instanceof SVGGeometryElement && getComputedStyle(e).fill !== "none") return getComputedStyle(e).fill;
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "rgb(255, 255, 255)";
  }
  function luminance(colour) {  // relative, as WCAG defines it
    const [r, g, b] = colour.match(/[\d.]+/g).map(Number)
      .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  const said = document.createElement("pre");
  said.id = "page-check";
  said.textContent = JSON.stringify({
    width: window.innerWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    ground: getComputedStyle(document.body).backgroundColor,
    texts: texts.length,
    charts: [...document.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 0).length,
    found,
  });
  parent.document.body.append(said);
})();
