"""Label Studio's ML backend: brushes, configs, its protocol, and a training from annotations."""

import base64
import io
import json
import urllib.error
import urllib.request

import numpy as np
import PIL.Image
import pytest
from test_client import Faulty

from vpt_dense.client import Result, Task
from vpt_dense.errors import UserError
from vpt_dense.labelling import backend, brush, forms
from vpt_dense.labelling.studio import Studio
from vpt_dense.labelling.training import Trainer, write_set

CLASSES = ('background', 'nucleus')
TASK = Task('cells', 'segmentation', CLASSES, ids=(0, 1), sha256='ab' * 32)
CONFIG = ('<View><Image name="image" value="$photo"/><BrushLabels name="tag" toName="image">'
          '<Label value="nucleus"/></BrushLabels></View>')
CONTROL = forms.Control('BrushLabels', 'tag', 'image', 'photo', ('nucleus',))

# --- brushes -------------------------------------------------------------------------------------


def by_the_book(rle):
    """rle-pack, bit by bit."""
    bits = ''.join(f'{byte:08b}' for byte in rle)
    take = iter(bits).__next__

    def number(size):
        return int(''.join(take() for _ in range(size)), 2)

    total, word = number(32), number(5) + 1
    sizes, out = [number(4) + 1 for _ in range(4)], []
    while len(out) < total:
        repeated = number(1)
        count = number(sizes[number(2)]) + 1
        out += [number(word)] * count if repeated else [number(word) for _ in range(count)]
    return out


@pytest.mark.parametrize('height, width', [(1, 1), (3, 5), (40, 31), (90, 150)])
def test_a_mask_comes_back_from_a_brush(height, width):
    rng = np.random.default_rng(0)
    for mask in (np.zeros((height, width), bool), np.ones((height, width), bool),
                 rng.random((height, width)) < 0.3,
                 np.add.outer(np.arange(height), np.arange(width)) < (height + width) // 2):
        rle = brush.encode(mask)
        assert (brush.decode(rle, height, width) == mask).all()
        assert by_the_book(rle) == np.repeat(mask.ravel() * 255, 4).tolist()


def test_a_mask_is_what_label_studios_own_converter_makes():
    """Golden: label_studio_converter 0.0.59, brush.mask2rle of this mask times 255."""
    mask = np.zeros((3, 8), bool)
    mask[0, 1:3] = mask[2, 7] = True
    golden = [0, 0, 0, 96, 57, 27, 252, 96, 19, 255, 228, 240, 8, 255, 192]
    assert brush.encode(mask) == golden and (brush.decode(golden, 3, 8) == mask).all()
    # As the page writes them: values one by one, other sizes, half opaque.
    values = [9, 9, 9, 200] * 2 + [9, 9, 9, 100]
    text = f'{12:032b}' + '00111' + '0001' * 4 + '0' + '00' + f'{1:02b}'
    text += ''.join(f'{v:08b}' for v in values[:2])
    for at in range(2, 12, 2):
        text += '0' + '01' + '01' + ''.join(f'{v:08b}' for v in values[at : at + 2])
    text += '0' * (-len(text) % 8)
    rle = [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
    assert by_the_book(rle) == values
    assert brush.decode(rle, 1, 3).tolist() == [[True, True, False]]


@pytest.mark.parametrize('rle, text', [
    ([], 'too early'), ([300], '0 to 255'), (['a'], '0 to 255'), (None, '0 to 255'),
    ([0, 0, 0, 4, 57, 27, 252, 0], 'of 2x3 has 24'), ([0, 0, 0, 24, 57, 27, 252], 'too early'),
    ([0, 0, 0, 24, 121, 27, 252, 0], 'of 16 bits'),
    ([0, 0, 0, 24, 57, 27, 255, 255, 255, 255, 255], 'more values')])
def test_damaged_brushes_are_refused(rle, text):
    with pytest.raises(ValueError, match=text):
        brush.decode(rle, 3, 2)


# --- configs, predictions, annotations -----------------------------------------------------------


@pytest.mark.parametrize('config, text', [
    ('<View>', 'is no XML'), ('<View/>', 'needs one <BrushLabels>'),
    (CONFIG.replace('nucleus', 'nucleos'), "did you mean 'nucleus'"),
    (CONFIG.replace('$photo', 'photo.png'), r'not \$NAME'),
    (CONFIG.replace('<Label value="nucleus"/>', ''), 'has no label')])
def test_configs_that_do_not_fit_are_refused(config, text):
    with pytest.raises(UserError, match=text):
        forms.read_config(config, TASK)


def test_predictions_and_annotations_are_each_others_opposite():
    assert forms.read_config(CONFIG, TASK) == CONTROL
    labels = (np.random.default_rng(0).random((20, 30)) < 0.4).astype(np.uint8)
    found = forms.prediction(Result('i', 'cells', 'segmentation', labels), CONTROL, TASK)
    assert found['model_version'] == 'cells abababababab'
    (row,) = found['result']
    assert row['original_width'] == 30 and row['value']['brushlabels'] == ['nucleus']
    assert (brush.decode(row['value']['rle'], 20, 30) == (labels == 1)).all()
    annotation = dict(id=7, result=found['result'])
    assert (forms.mask(annotation, CONTROL, CLASSES, (20, 30)) == labels).all()
    # Two classes without a label: what is not painted is not trained on; ids of the annotations.
    mask = forms.mask(annotation, CONTROL, ('a', 'nucleus', 'b'), (20, 30), (3, 5, 9))
    assert (mask == np.where(labels, 5, 255)).all()
    for change, text in [
            (dict(original_width=31), 'an image of 31x20'), (dict(image_rotation=90), 'by 90'),
            (dict(type='rectanglelabels'), 'not painted'),
            (dict(value=dict(row['value'], brushlabels=['x'])), 'is not one of'),
            (dict(value=dict(row['value'], rle=[1])), 'too early')]:
        with pytest.raises(UserError, match=text):
            forms.mask(dict(id=7, result=[{**row, **change}]), CONTROL, CLASSES, (20, 30))


def test_choices_are_the_best_that_may_be_chosen():
    config = ('<View><Image name="i" value="$photo"/><Choices name="c" toName="i">'
              '<Choice value="Dog" alias="dog"/><Choice value="eel"/></Choices></View>')
    task = Task('animal', 'classification', ('cat', 'dog', 'eel'))
    control = forms.read_config(config, task)
    result = Result('i', 'animal', 'classification',
                    scores=(('cat', 0.5), ('dog', 0.3), ('eel', 0.2)))
    found = forms.prediction(result, control, task)
    assert found['result'][0]['value'] == dict(choices=['dog']) and found['score'] == 0.3


def test_the_annotation_that_counts():
    old, new = dict(id=1, updated_at='2026-01-01'), dict(id=2, updated_at='2026-01-02')
    assert forms.choose(dict(annotations=[new, old])) is new
    assert forms.choose(dict(annotations=[new, dict(old, ground_truth=True)]))['id'] == 1
    assert forms.choose(dict(annotations=[dict(new, was_cancelled=True)])) is None


# --- a Label Studio: its images and its export ---------------------------------------------------


class LabelStudio(Faulty):
    """Answers by path, to those who have its key."""

    def __init__(self, files):
        super().__init__()
        self.files = files

    class Handler(Faulty.Handler):
        def do_GET(self):
            content = self.server.files.get(self.path)
            allowed = self.headers.get('Authorization') == 'Token its-key'
            status = 404 if content is None else 200 if allowed else 401
            self.server.answers = [(status, content if status == 200 else b'', {})]
            self.answer()


def png(array):
    stream = io.BytesIO()
    PIL.Image.fromarray(array).save(stream, 'PNG')
    return stream.getvalue()


def project(number, size=(32, 32)):
    """Files of a project whose images are dark where a nucleus is, and its masks."""
    rng = np.random.default_rng(1)
    files, tasks, masks = {}, [], {}
    for i in range(1, number + 1):
        mask = np.zeros(size, bool)
        mask[rng.integers(8) :, rng.integers(8) : 20] = True
        image = np.where(mask, 40, 200).astype(np.uint8)[..., None] + rng.integers(
            0, 30, (*size, 3), np.uint8)
        files[f'/data/upload/{i}.png'] = png(image)
        row = dict(from_name='tag', to_name='image', type='brushlabels', original_width=size[1],
                   original_height=size[0], image_rotation=0, value=dict(
                       format='rle', rle=brush.encode(mask), brushlabels=['nucleus']))
        tasks.append(dict(id=i, data=dict(photo=f'/data/upload/{i}.png'),
                          annotations=[dict(id=i, result=[row])]))
        masks[i] = mask
    files['/api/projects/3/'] = json.dumps(dict(label_config=CONFIG)).encode()
    files['/api/projects/3/export?exportType=JSON'] = json.dumps(tasks).encode()
    return files, tasks, masks


@pytest.fixture
def studio():
    files, tasks, masks = project(7)
    server = LabelStudio(files)
    found = Studio(server.url, 'its-key')
    found.server, found.tasks, found.masks = server, tasks, masks
    yield found
    server.shutdown()
    server.server_close()


def test_a_data_set_of_what_was_labelled(studio, tmp_path):
    config, tasks = studio.project(3)
    counts = write_set(tmp_path, studio, tasks, forms.read_config(config, TASK), TASK)
    assert counts == dict(training=6, validation=1)
    for i, mask in studio.masks.items():
        split = 'validation' if i == 5 else 'training'
        stored = np.asarray(PIL.Image.open(tmp_path / f'annotations/{split}/task_{i}.png'))
        assert stored.dtype == np.uint8 and (stored == mask).all()
        image = (tmp_path / f'images/{split}/task_{i}.png').read_bytes()
        assert image == studio.server.files[f'/data/upload/{i}.png']
    assert write_set(tmp_path / 'two', studio, tasks[:2], CONTROL, TASK) == dict(
        training=1, validation=1)
    with pytest.raises(UserError, match='label at least two'):
        write_set(tmp_path / 'one', studio, tasks[:1], CONTROL, TASK)


@pytest.mark.parametrize('place, text', [
    ('http://elsewhere.org/a.png', '--images-from elsewhere.org'), ('s3://a/b.png', 'upload'),
    ('file:///etc/passwd', 'upload'), ('/no.png', 'answers 404'), (None, "no 'photo'")])
def test_images_of_others_are_not_fetched(studio, place, text):
    with pytest.raises(UserError, match=text):
        studio.image(dict(data=dict(photo=place)), 'photo')


def test_the_key_is_for_label_studio_alone(studio):
    other = LabelStudio({})
    host = other.url.removeprefix('http://')
    allowing = Studio(studio.server.url, 'its-key', [host])
    with pytest.raises(UserError, match='answers 404'):
        allowing.image(dict(data=dict(photo=f'{other.url}/a.png')), 'photo')
    assert 'Authorization' not in other.asked[0][2]
    other.shutdown()
    with pytest.raises(UserError, match=r'answers 401 \(its key'):
        Studio(studio.server.url, 'wrong').project(3)


# --- the protocol, with a real server ------------------------------------------------------------


@pytest.fixture(scope='module')
def serving(tmp_path_factory):
    pytest.importorskip('fastapi')
    from served import running, write_base, write_task

    folder = tmp_path_factory.mktemp('served')
    (folder / 'tasks').mkdir()
    write_task(folder / 'tasks/cells.safetensors', write_base(folder), list(CLASSES))
    with running(folder) as url:
        yield url


def post(url, content, password=None):
    request = urllib.request.Request(url, json.dumps(content).encode(), {
        'Content-Type': 'application/json', **({} if password is None else {
            'Authorization': 'Basic ' + base64.b64encode(f'me:{password}'.encode()).decode()})})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_protocol_from_tasks_to_predictions(serving, studio):
    import threading
    import time

    import uvicorn

    from vpt_dense.client import Client

    with Client(serving) as client:
        answering = backend.Backend(client, 'cells', studio)
        server = uvicorn.Server(uvicorn.Config(
            backend.build(answering, 'word'), port=0, log_level='warning'))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        url = f'http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}'
        try:
            assert post(f'{url}/predict', {})[0] == 401
            assert post(f'{url}/predict', {}, 'wrong')[0] == 401
            status, said = post(f'{url}/setup', dict(project='3.1', schema=CONFIG), 'word')
            (task,) = client.tasks()
            assert status == 200 and said['model_version'] == f'cells {task.sha256[:12]}'
            status, said = post(
                f'{url}/setup', dict(schema=CONFIG.replace('nucleus', 'x')), 'word')
            assert status == 400 and "'x'" in said['error']
            tasks = [*studio.tasks[:2], dict(id=9, data=dict(photo='/gone.png'))]
            status, said = post(
                f'{url}/predict', dict(tasks=tasks, label_config=CONFIG, project='3.1'), 'word')
            assert status == 200 and said['results'][2] == []
            for each, found in zip(tasks, said['results'][:2], strict=False):
                labels = client.predict(studio.server.files[each['data']['photo']], 'cells').labels
                masks = [brush.decode(row['value']['rle'], 32, 32) for row in found['result']]
                assert (np.any([*masks, np.zeros((32, 32), bool)], 0) == (labels == 1)).all()
            status, said = post(f'{url}/webhook', dict(action='START_TRAINING'), 'word')
            assert status == 400 and '--train CONFIG' in said['error']
        finally:
            server.should_exit = True
            thread.join()


class Recording:
    """In place of a client: a server that has no task yet, and keeps what it is given."""

    url, given = 'http://server', None

    def tasks(self):
        return []

    def add_task(self, name, file):
        self.given = name, file.read_bytes()


@pytest.mark.long
def test_ten_labels_a_training_and_a_delta(studio, tmp_path):
    """Of a tiny random ViT: the delta predicts what was labelled; a failure is told."""
    from test_deltas import save_base
    from tool_helpers import CONFIGS, LEAF

    import vpt_dense

    base = save_base(tmp_path / 'base.pth')
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(LEAF.format(
        base=CONFIGS / 'vpt/setr_vit-l_deep_segfolder.py', work_dir=tmp_path / 'work',
        data_root='none') + "\nmodel['backbone']['init_cfg'] = "
        f"dict(type='Pretrained', checkpoint='{base}')\n")
    server, said = Recording(), []
    trainer = Trainer(server, studio, str(leaf), tmp_path / 'runs', say=said.append)
    answering = backend.Backend(server, 'cells', studio, trainer, every=2, classes=CLASSES)
    assert answering.predict(dict(tasks=studio.tasks[:2], label_config=CONFIG)) == dict(
        results=[[], []])
    created = dict(action='ANNOTATION_CREATED', project=dict(id=3))
    assert answering.webhook(dict(created, task=dict(id=1))) == {}
    assert answering.webhook(dict(created, task=dict(id=1))) == {}  # the same image again
    assert answering.webhook(dict(created, task=dict(id=2)))['status'] == 'ok'
    with pytest.raises(UserError, match='runs already'):
        answering.webhook(dict(action='START_TRAINING', project=dict(id=3)))
    trainer.wait()
    assert trainer.state['status'] == 'done', trainer.state
    name, content = server.given
    delta = tmp_path / f'{name}.safetensors'
    delta.write_bytes(content)
    assert 'cells' == name and '6 images, 1 for validation' in said[0]
    labels = vpt_dense.load(str(delta)).predict(
        np.asarray(PIL.Image.open(io.BytesIO(studio.server.files['/data/upload/1.png'])))).labels
    assert labels.shape == (32, 32) and set(np.unique(labels)) <= {0, 1}
    trainer.config = str(tmp_path / 'gone.py')
    answering.webhook(dict(action='START_TRAINING', project=dict(id=3)))
    trainer.wait()
    assert trainer.state['status'] == 'failed' and 'gone.py' in trainer.state['message']
