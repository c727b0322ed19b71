"""report.html in a browser (`make test-report`): Debian's chromium, or the one CHROMIUM names."""

import base64
import json
import os
import re
import shutil

import pytest
from report_folders import HOSTILE, make_comparison, make_run

from vpt_dense import report
from vpt_dense.comparison import page as comparison_page

playwright = pytest.importorskip('playwright.sync_api')

METHODS = {'head': 0, 'deep': 55_296, 'lora': 147_456, 'a method with a long name': 90_000}


@pytest.fixture(scope='module')
def browser():
    path = shutil.which(os.environ.get('CHROMIUM', 'chromium'))
    assert path, 'no chromium: install it (apt-get install chromium), or name one in CHROMIUM'
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """Kind of page -> file."""
    folder = tmp_path_factory.mktemp('pages')
    compared = make_comparison(
        folder / 'compared', METHODS, failures={'rein, seed 0': 'no memory'}, trials=3,
        classes=[f'class {i} of many' for i in range(30)],
        searched={name: ['lr=0.01', 'head_lr=0.1'] for name in METHODS})
    hostile = make_comparison(
        folder / 'hostile', dict(zip(HOSTILE, (0, 10, 20, 30, 40), strict=True)), classes=HOSTILE,
        names=HOSTILE, failures={HOSTILE[0]: HOSTILE[1]}, command=HOSTILE[2])
    return {
        'run': report.write_run(make_run(folder / 'run', names=('a/long/name/' * 9 + 'of.png',))),
        'classification': report.write_run(make_run(folder / 'cls', task='classification')),
        'hostile run': report.write_run(make_run(
            folder / 'hostile_run', classes=HOSTILE, names=HOSTILE, text='\n'.join(HOSTILE),
            command=' '.join(HOSTILE), config=HOSTILE[0])),
        'comparison': comparison_page.write_comparison(compared),
        'hostile comparison': comparison_page.write_comparison(hostile),
    }


@pytest.fixture
def visit(browser, pages):
    """Open a page; in the end nothing may have been logged or asked of a network."""
    contexts, said = [], []

    def start(name, width=1240, scheme='light'):
        context = browser.new_context(
            viewport={'width': width, 'height': 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on('console', lambda message: said.append(f'{message.type}: {message.text}'))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.on('request', lambda request: request.url.startswith(('data:', 'file:')) or
                said.append(request.url))
        page.goto(pages[name].as_uri())
        return page

    yield start
    for context in contexts:
        context.close()
    assert said == []


KINDS = ['run', 'classification', 'hostile run', 'comparison', 'hostile comparison']


@pytest.mark.parametrize('width', [390, 768, 1240])
@pytest.mark.parametrize('name', KINDS)
def test_the_page_is_no_wider_than_the_screen_and_runs_no_data(visit, name, width):
    page = visit(name, width)
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    beyond = page.evaluate('''() => [...document.querySelectorAll('main *, header *')].filter(
        e => !e.closest('.scroll, pre, nav, .stack, .hidden-text, svg')
            && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)''')
    assert beyond == []
    assert page.evaluate('window.hurt') is None
    assert page.get_by_role('heading', level=1).count() == 1


@pytest.mark.parametrize('name', KINDS)
def test_pictures_load(visit, name):
    page = visit(name)
    sizes = page.evaluate('''async () => {
        const images = [...document.images];
        await Promise.all(images.map(image => image.decode()));
        return images.map(image => [image.naturalWidth, image.naturalHeight]);
    }''')
    assert len(sizes) >= 8 and all(size == [90, 60] for size in sizes)


def column(page, caption, index):
    table = page.locator('table').filter(has=page.locator('caption', has_text=caption))
    values = table.locator(f'tbody tr > :nth-child({index + 1})').evaluate_all(
        'cells => cells.map(cell => cell.dataset.value ?? cell.textContent)')
    return table, values


def test_tables_are_sorted_both_ways_by_number(visit):
    """By values, not by text; a dash is last both ways; the heading tells the order."""
    page = visit('comparison')
    table, before = column(page, 'Methods', 1)
    assert [float(v) for v in before] == sorted(map(float, before))
    heading = table.locator('thead th').nth(1)
    assert heading.get_attribute('aria-sort') == 'none'
    for order in ('descending', 'ascending', 'descending'):
        heading.get_by_role('button').click()
        assert heading.get_attribute('aria-sort') == order
        _, found = column(page, 'Methods', 1)
        assert [float(v) for v in found] == sorted(
            map(float, before), reverse=order == 'descending')
    against = table.locator('thead th').nth(2)
    for order in (1, -1):
        against.get_by_role('button').click()
        _, found = column(page, 'Methods', 2)
        assert found[-1] == '–' and len(found) == len(METHODS)
        numbers = [order * float(v) for v in found[:-1]]
        assert numbers == sorted(numbers, reverse=True)
    assert heading.get_attribute('aria-sort') == 'none'
    table, before = column(page, 'Methods', 0)
    table.locator('thead th').nth(0).get_by_role('button').focus()
    page.keyboard.press('Enter')
    assert column(page, 'Methods', 0)[1] == sorted(METHODS)


def test_by_name_classes_are_sorted_as_one_counts(visit):
    page = visit('comparison')
    table, before = column(page, 'by class', 0)
    table.locator('thead th').nth(0).get_by_role('button').click()
    table.locator('thead th').nth(0).get_by_role('button').click()
    assert column(page, 'by class', 0)[1] == [f'class {i} of many' for i in range(29, -1, -1)]


def picture(page, number=0):
    stack = page.locator('.stack').nth(number)
    stack.scroll_into_view_if_needed()
    return stack.screenshot()


def pixel(page, x, y, number=0):
    """The colour at a place of a picture, as fractions of its size."""
    data = base64.b64encode(picture(page, number)).decode()
    return page.evaluate('''async ([url, x, y]) => {
        const image = new Image();
        image.src = url;
        await image.decode();
        const canvas = new OffscreenCanvas(image.width, image.height)
            .getContext('2d', {willReadFrequently: true});
        canvas.drawImage(image, 0, 0);
        return [...canvas.getImageData(x * image.width, y * image.height, 1, 1).data];
    }''', [f'data:image/png;base64,{data}', x, y])


def test_the_divider_and_the_choices_change_what_is_shown(visit):
    page = visit('comparison')
    assert [tag.text_content() for tag in page.locator('.stack').first.locator('.tag').all()] == [
        'head', 'a method with a long name']
    before = picture(page)
    wipe = page.locator('.wipe').first
    wipe.focus()
    for _ in range(30):
        page.keyboard.press('ArrowRight')
    moved = picture(page)
    assert moved != before and wipe.input_value() == '80'
    assert page.locator('.wipe').nth(3).input_value() == '80'  # all pictures follow
    cut = page.locator('.viewer').evaluate("e => getComputedStyle(e).getPropertyValue('--cut')")
    assert cut == '80%'
    for side, choice in (('left', 'truth'), ('right', 'deep'), ('left', 'image')):
        last = picture(page)
        page.locator(f'select[data-side={side}]').select_option(label=choice)
        assert page.locator(f'.tag.{side}').first.text_content() == choice
        assert picture(page) != last
    shown = page.locator('figure').filter(has=page.locator('.wipe')).first.locator(
        '.score:visible')
    assert [re.sub(r' [\d.]+$', '', text) for text in shown.all_text_contents()] == ['deep IoU']
    last = picture(page)
    page.locator('[data-alpha]').fill('100')
    assert picture(page) != last


def test_the_layers_are_where_the_divider_says(visit):
    """At full colour the left is the truth's, the right the prediction's, to the pixel."""
    page = visit('run')
    page.locator('[data-alpha]').fill('100')
    layers = page.locator('.stack').first.locator('.layer')
    expected = [layers.nth(i).evaluate('''async layer => {
        await layer.decode();
        const canvas = new OffscreenCanvas(layer.naturalWidth, layer.naturalHeight)
            .getContext('2d', {willReadFrequently: true});
        canvas.drawImage(layer, 0, 0);
        return [[22, 41], [67, 41]].map(
            ([x, y]) => [...canvas.getImageData(x, y, 1, 1).data]);
    }''') for i in range(2)]
    left, right = ((22 + 0.5) / 90, 41.5 / 60), ((67 + 0.5) / 90, 41.5 / 60)
    assert pixel(page, *left) == expected[0][0] and pixel(page, *right) == expected[1][1]
    page.locator('.wipe').first.fill('100')
    assert pixel(page, *right) == expected[0][1]
    page.locator('.wipe').first.fill('0')
    assert pixel(page, *left) == expected[1][0]


def test_a_finger_or_the_mouse_moves_the_divider(visit):
    page = visit('run', width=390)
    stack = page.locator('.stack').first
    stack.scroll_into_view_if_needed()
    box = stack.bounding_box()
    page.mouse.click(box['x'] + 0.2 * box['width'], box['y'] + 0.6 * box['height'])
    assert abs(int(page.locator('.wipe').first.input_value()) - 20) <= 8


LUMINANCE = '''() => {
    const light = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255).map(
            v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)$|transparent/.test(colour)) return colour;
        }
    };
    const found = [];
    for (const e of document.querySelectorAll('body *')) {
        if (e.closest('script, style, .tag, .divider, option, select, .arrow, .hidden-text, .skip')
            || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
        const style = getComputedStyle(e);
        const ink = e.namespaceURI.includes('svg') ? style.fill : style.color;
        if (e.localName === 'title') continue;
        const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)]);
    }
    return found;
}'''


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', ['run', 'comparison', 'classification'])
def test_text_is_readable_in_both_schemes(visit, name, scheme):
    """Contrast by WCAG 2: at least 4.5 for every text."""
    page = visit(name, scheme=scheme)
    found = page.evaluate(LUMINANCE)
    assert len(found) > 50 and [each for each in found if each[0] < 4.5] == []
    ground = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (int(re.findall(r'\d+', ground)[0]) < 60) is (scheme == 'dark')


def test_every_control_can_be_reached_by_keyboard_and_has_a_name(visit):
    page = visit('comparison')
    controls = page.evaluate('''() => [...document.querySelectorAll(
        'a, button, select, input, summary, [tabindex]')].map(
            e => [e.tabIndex, (e.getAttribute('aria-label') || e.textContent ||
                  (e.labels && [...e.labels].map(l => l.textContent).join()) || '').trim()])''')
    assert len(controls) > 30
    assert [each for each in controls if each[0] < 0 or not each[1]] == []
    page.keyboard.press('Tab')
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline not in ('none', '')


def test_headings_and_tables_are_told_to_those_who_do_not_see(visit):
    page = visit('comparison')
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.localName[1]))")
    assert levels[0] == 1 and set(levels[1:]) == {2}
    scopes = page.evaluate(
        "[...document.querySelectorAll('th')].map(th => th.getAttribute('scope'))")
    assert set(scopes) == {'col', 'row'}
    assert page.evaluate('[...document.images].every(image => image.alt)')
    assert page.evaluate("[...document.querySelectorAll('svg')].every("
                         "svg => svg.getAttribute('aria-label').length > 20)")


def test_on_paper_all_layers_are_side_by_side(visit):
    page = visit('run')
    page.emulate_media(media='print')
    places = page.locator('.stack').first.locator('img').evaluate_all(
        'images => images.map(image => image.getBoundingClientRect().toJSON())')
    assert len(places) == 3 and len({place['top'] for place in places}) == 1
    lefts = [place['left'] for place in places]
    assert lefts == sorted(lefts) and all(place['width'] > 80 for place in places)
    assert not page.locator('.toolbar').is_visible()
    assert page.pdf()[:5] == b'%PDF-'
    page = visit('comparison', width=760)  # A4 without its margins, at 96 pixels an inch
    page.emulate_media(media='print')
    assert page.evaluate('document.documentElement.scrollWidth') <= 760


def test_without_scripts_there_is_all_but_the_controls(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages['comparison'].as_uri())
    assert page.locator('table tbody tr').count() > 30
    assert page.locator('.layer:visible').count() == 16  # left and right of 8 images
    context.close()


def test_figures_on_the_screen_are_those_of_the_records(visit, pages):
    """What is seen, beside what is kept for sorting."""
    page = visit('comparison')
    rows = json.loads((pages['comparison'].parent / 'table.json').read_text())['rows']
    table = page.locator('table').filter(has=page.locator('caption', has_text='Methods'))
    for row, line in zip(rows, table.locator('tbody tr').all(), strict=True):
        cells = line.locator('th, td').all_inner_texts()
        assert cells[0].strip() == row['method']
        assert cells[1].split() == f'{row["mean"]:.2f} ± {row["std"]:.2f}'.split()
        assert f'{row["trainable"]:,}' in cells
