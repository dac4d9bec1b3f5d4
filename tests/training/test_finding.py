import numpy as np
import torch
from torch.nn.functional import normalize

from training.finding import QUERIES, compare, late_interaction, recall, thumbnail, vectors_of
from training.materials import Materials
from training.reader import ReadingObjective


def test_recall_counts_the_queries_whose_page_is_among_the_first() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    np.testing.assert_allclose(recall(scores, (1, 2, 3)), [1 / 3, 2 / 3, 1])


def test_late_interaction_is_the_mean_of_the_best_similarities() -> None:
    torch.manual_seed(0)
    queries, pages = (normalize(torch.randn(count, 4, 8), dim=-1) for count in (2, 3))
    scores = late_interaction(queries, pages)
    expected = torch.einsum("qtd,pud->qptu", queries, pages).amax(-1).mean(-1)
    torch.testing.assert_close(scores, expected, atol=0.02, rtol=0.02)


def test_queries_show_the_page_in_other_ways(materials: Materials) -> None:
    images = {name: draw(0, materials) for name, draw in QUERIES.items()}
    assert {image.size for image in images.values()} == {(512, 512)}
    assert len({image.tobytes() for image in images.values()}) == len(images)
    assert QUERIES["photograph"](0, materials).tobytes() == images["photograph"].tobytes()


def test_vectors_of_pages(materials: Materials) -> None:
    torch.manual_seed(0)
    images = [QUERIES["page"](number, materials).resize((128, 128)) for number in range(3)]
    vectors = vectors_of(ReadingObjective().encoder.eval(), images, batch_size=2)
    assert vectors.pooled.shape == (3, 320) and vectors.tokens.shape == (3, 4, 448)
    torch.testing.assert_close(compare(vectors, vectors)["pooled vector"].diagonal(), torch.ones(3))
    assert abs(thumbnail(images[0]).mean()) < 1e-3
