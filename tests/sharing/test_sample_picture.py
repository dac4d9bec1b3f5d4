"""The picture on the model card."""

import io

from PIL import Image

from deepencoder import DeepEncoder, DeepEncoderConfig
from deepencoder.sharing.sample_picture import draw_sample_page


def test_the_page_lies_beside_its_features() -> None:
    picture = Image.open(io.BytesIO(draw_sample_page(DeepEncoder(DeepEncoderConfig.tiny()))))
    assert picture.format == "PNG"
    width, height = picture.size
    page = picture.convert("RGB").crop((0, 0, height, height))
    lightest = max(page.getcolors(height * height) or [])[1]
    assert width > height and min(lightest) > 200, "the paper of the sample page"
