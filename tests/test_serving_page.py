"""The page of `vpt-dense serve` in a browser (`make test-serve`): chromium, or CHROMIUM."""

import os
import re
import shutil

import cv2
import numpy as np
import PIL.Image
import pytest

playwright = pytest.importorskip('playwright.sync_api')
pytest.importorskip('fastapi')

WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope='module')
def browser():
    path = shutil.which(os.environ.get('CHROMIUM', 'chromium'))
    assert path, 'no chromium: install it (apt-get install chromium), or name one in CHROMIUM'
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    from served import write_tasks

    folder = tmp_path_factory.mktemp('served')
    write_tasks(folder)
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (8, 12, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(
        cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    image.save(folder / 'photo.png')
    turned = image.transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # it is seen as the other one
    turned.save(folder / 'turned.jpg', exif=exif, quality=95)
    (folder / 'no image.png').write_bytes(b'nothing')
    return folder


@pytest.fixture(scope='module')
def urls(folder):
    from served import running

    with running(folder) as free, running(folder, keys=dict(reads='reader')) as locked:
        yield dict(free=free, locked=locked)


@pytest.fixture
def visit(browser, urls):
    """Open the page; in the end nothing may have been logged, or asked of others."""
    contexts, said, expected = [], [], []

    def start(name='free', width=1240, scheme='light', errors=()):
        expected.extend(errors)
        context = browser.new_context(
            viewport={'width': width, 'height': 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on('console', lambda message: said.append(f'{message.type}: {message.text}'))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.on('request', lambda request: request.url.startswith(
            ('data:', 'blob:', urls[name] + '/')) or said.append(request.url))
        page.goto(urls[name])
        return page

    yield start
    for context in contexts:
        context.close()
    assert [line for line in said if not any(text in line for text in expected)] == []


def predict(page, file, *tasks):
    page.get_by_role('checkbox').first.wait_for()
    for name in tasks:
        page.locator(f'input[value={name}]').check()
    for box in page.get_by_role('checkbox').all():
        if box.get_attribute('value') not in tasks:
            box.uncheck()
    page.set_input_files('#file', str(file))
    page.locator('#status').filter(has_text=f'{file.name}, ').wait_for()


def labels_of(urls, file, task):
    from vpt_dense.client import Client

    with Client(urls['free']) as client:
        return client.predict(file, task)


def pixel(page, selector, x, y):
    """What a canvas has at a pixel."""
    return page.locator(selector).evaluate('''(e, [x, y]) => {
        const copy = new OffscreenCanvas(e.width, e.height)
            .getContext('2d', {willReadFrequently: true});
        copy.drawImage(e, 0, 0);
        return [...copy.getImageData(x, y, 1, 1).data]; }''', [x, y])


def test_a_prediction_appears_and_is_the_servers(visit, folder, urls):
    page = visit()
    assert page.get_by_role('button', name='Predict').is_disabled()
    predict(page, folder / 'photo.png', 'roads', 'many')
    task_of = {}
    with_client = {name: labels_of(urls, folder / 'photo.png', name) for name in ('roads', 'many')}
    assert page.locator('#left').input_value() == 'many'  # in the order of the list
    assert page.locator('#right').input_value() == 'roads'
    from vpt_dense.client import Client

    with Client(urls['free']) as client:
        task_of = {task.name: task for task in client.tasks()}
    for layer, name in (('#layer-left', 'many'), ('#layer-right', 'roads')):
        labels = with_client[name].labels
        for x, y in ((0, 0), (WIDTH - 1, HEIGHT - 1), (40, 13), (71, 50)):
            colour = task_of[name].palette[labels[y, x]]
            assert pixel(page, layer, x, y) == [*colour, 255]
    assert with_client['many'].labels.max() > 255  # 16 bits came through
    card = page.locator('.card').filter(has_text='roads')
    shares = dict(zip(card.locator('li > span:nth-child(2)').all_text_contents(),
                      card.locator('.value').all_text_contents(), strict=True))
    for name, share in with_client['roads'].shares.items():
        assert share == 0 and name not in shares or shares[name] == f'{100 * share:.1f} %'


def place(page, x, y):
    box = page.locator('#stack').bounding_box()
    return (box['x'] + (x + 0.5) / WIDTH * box['width'],
            box['y'] + (y + 0.5) / HEIGHT * box['height'])


def test_the_pointer_tells_the_class(visit, folder, urls):
    page = visit()
    predict(page, folder / 'photo.png', 'roads', 'many')
    roads = labels_of(urls, folder / 'photo.png', 'roads').labels
    many = labels_of(urls, folder / 'photo.png', 'many').labels
    page.locator('#stack').scroll_into_view_if_needed()
    names = ['ground', 'road', '<b>car</b>']
    for x, y in ((3, 5), (90, 60), (50, 20)):
        page.mouse.move(*place(page, x, y))
        assert page.locator('#readout').text_content() == (
            f'many: class {many[y, x]} · roads: {names[roads[y, x]]} ({x}, {y})')


def test_the_keyboard_reaches_all(visit, folder):
    page = visit()
    predict(page, folder / 'photo.png', 'roads', 'many')
    seen = []
    page.evaluate('''() => {
        document.body.tabIndex = -1;
        document.body.focus();
        document.body.removeAttribute('tabindex'); }''')
    page.keyboard.press('Tab')
    for _ in range(30):
        seen.append(page.evaluate('document.activeElement.id || document.activeElement.className'
                                  ' || document.activeElement.value || "body"'))
        style = page.evaluate('''() => {
            const e = document.activeElement.closest('.drop') || (
                document.activeElement.matches('.wipe') ? document.querySelector('.stack')
                : document.activeElement);
            return getComputedStyle(e).outlineStyle; }''')
        assert style != 'none' or seen[-1] == 'body', seen[-1]
        page.keyboard.press('Tab')
        if seen[-1] == 'body':
            break
    for name in ('skip', 'file', 'many', 'predict', 'left', 'right', 'alpha', 'wipe', 'probe',
                 'legend', 'save'):
        assert name in seen, name
    page.locator('#wipe').focus()
    for _ in range(30):
        page.keyboard.press('ArrowRight')
    cut = page.locator('#stack').evaluate("e => getComputedStyle(e).getPropertyValue('--cut')")
    assert cut == '80%'
    page.locator('#probe').focus()
    page.keyboard.press('ArrowRight')
    assert f'({WIDTH // 2}, {HEIGHT // 2})' in page.locator('#readout').text_content()
    page.keyboard.press('ArrowLeft')
    page.keyboard.press('Shift+ArrowDown')
    assert f'({WIDTH // 2 - 1}, {HEIGHT // 2 + 10})' in page.locator('#readout').text_content()
    assert page.locator('#cross').is_visible()


def test_the_sides_and_the_opacity_change_what_is_seen(visit, folder):
    page = visit()
    predict(page, folder / 'photo.png', 'roads', 'many')
    stack = page.locator('#stack')
    last = stack.screenshot()
    for do in (lambda: page.locator('#wipe').fill('100'),
               lambda: page.locator('#left').select_option('roads'),
               lambda: page.locator('#alpha').fill('100'),
               lambda: page.locator('#left').select_option('')):
        do()
        assert stack.screenshot() != last
        last = stack.screenshot()
    assert page.locator('#tag-left').text_content() == 'image'


def test_scores_a_download_and_what_was_before(visit, folder, urls):
    page = visit()
    predict(page, folder / 'photo.png', 'roads')
    with page.expect_download() as download:
        page.get_by_role('button', name='Download label map (PNG) of roads').click()
    assert download.value.suggested_filename == 'photo.roads.png'
    labels = cv2.imread(str(download.value.path()), cv2.IMREAD_UNCHANGED)
    assert (labels == labels_of(urls, folder / 'photo.png', 'roads').labels).all()
    predict(page, folder / 'turned.jpg', 'animal', 'roads')
    turned = labels_of(urls, folder / 'turned.jpg', 'roads').labels
    assert turned.shape == (HEIGHT, WIDTH)
    assert pixel(page, '#picture', 0, 0) != [0, 0, 0, 0]
    scores = labels_of(urls, folder / 'turned.jpg', 'animal').scores
    rows = page.locator('.card').filter(has_text='animal').locator('li').all_inner_texts()
    assert [row.split('\n')[0].strip() for row in rows] == [name for name, _ in scores[:5]]
    assert page.locator('#history button').count() == 2
    page.get_by_role('button', name='Show photo.png again').click()
    assert page.locator('.card').count() == 1
    assert 'photo.png' in page.locator('#picture').get_attribute('aria-label')


def test_a_file_that_is_dropped_is_predicted(visit, folder):
    page = visit()
    page.get_by_role('checkbox').first.wait_for()
    content = list((folder / 'photo.png').read_bytes())
    data = page.evaluate_handle('''content => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(content)], 'fell.png', {type: 'image/png'}));
        return data; }''', content)
    page.dispatch_event('#drop', 'drop', {'dataTransfer': data})
    page.locator('#status').filter(has_text='fell.png, ').wait_for()
    assert page.locator('.card').count() == 1


def test_errors_are_one_line_and_names_are_no_markup(visit, folder):
    page = visit(errors=['400 (Bad Request)'])
    page.get_by_role('checkbox').first.wait_for()
    assert page.locator('b', has_text='car').count() == 0
    assert '<b>car</b>' in page.locator('#tasks').inner_text()
    page.set_input_files('#file', str(folder / 'no image.png'))
    error = page.get_by_role('alert')
    error.filter(has_text='no image.png: not an image').wait_for()
    predict(page, folder / 'photo.png', 'roads')
    assert not error.is_visible()


def test_a_server_with_keys_asks_for_one(visit, folder):
    page = visit('locked', errors=['401 (Unauthorized)', '403 (Forbidden)'])
    page.get_by_role('textbox', name='Key').wait_for()
    page.get_by_role('textbox', name='Key').fill('wrong')
    page.keyboard.press('Enter')
    page.get_by_role('alert').filter(has_text='key').wait_for()
    page.get_by_role('textbox', name='Key').fill('reads')
    page.get_by_role('button', name='Use it').click()
    predict(page, folder / 'photo.png', 'roads')
    assert page.locator('.card').count() == 1


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 768, 1240])
def test_it_fits_the_screen_and_can_be_read(visit, folder, width, scheme):
    from test_report_browser import LUMINANCE

    page = visit(width=width, scheme=scheme)
    predict(page, folder / 'photo.png', 'roads', 'many', 'animal')
    predict(page, folder / 'turned.jpg', 'roads')
    page.get_by_role('button', name='Show photo.png again').click()
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    beyond = page.evaluate('''() => [...document.querySelectorAll('main *, header *')].filter(
        e => !e.closest('.hidden-text, .stack, .drop') && e.getBoundingClientRect().width
            && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)''')
    assert beyond == []
    found = page.evaluate(LUMINANCE)
    assert len(found) > 30 and [each for each in found if each[0] < 4.5] == []
    ground = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert (int(re.findall(r'\d+', ground)[0]) < 60) is (scheme == 'dark')


def test_controls_have_names_and_results_are_told(visit, folder):
    page = visit()
    predict(page, folder / 'photo.png', 'roads', 'animal')
    controls = page.evaluate('''() => [...document.querySelectorAll(
        'a, button, select, input, [tabindex="0"]')].filter(e => e.checkVisibility()).map(
            e => [e.outerHTML, (e.getAttribute('aria-label') || e.textContent ||
                  (e.labels && [...e.labels].map(l => l.textContent).join()) || '').trim()])''')
    assert len(controls) > 12 and [each for each in controls if not each[1]] == []
    status = page.get_by_role('status').filter(has_text='photo.png, ')
    assert status.get_attribute('aria-live') == 'polite'
    assert 'roads: ' in status.text_content() and 'animal: ' in status.text_content()
