"""All figures by section, each section in the order of its tutorial."""

from experiments.reproduce.figure import Figure
from experiments.reproduce.figures.cafe import CAFE_FIGURES
from experiments.reproduce.figures.completion import COMPLETION_FIGURES
from experiments.reproduce.figures.layers import LAYER_FIGURES
from experiments.reproduce.figures.rows import ROW_FIGURES
from experiments.reproduce.figures.sentences import SENTENCE_FIGURES
from experiments.reproduce.figures.tagging import TAGGING_FIGURES
from experiments.reproduce.figures.weak_chatbots import CHATBOT_WEAKNESSES
from experiments.reproduce.figures.weak_models import MODEL_WEAKNESSES
from experiments.reproduce.figures.wiki import WIKI_FIGURES
from experiments.reproduce.figures.words import WORD_FIGURES

SECTIONS: dict[str, list[Figure]] = {
    "Layers (R0, R2)": LAYER_FIGURES,
    "Tags of subject, verb and object (R2)": TAGGING_FIGURES,
    "MNIST by rows (R3)": ROW_FIGURES,
    "Completion of words (R3)": COMPLETION_FIGURES,
    "Translation of words (R3)": WORD_FIGURES,
    "Translation of sentences (R4)": SENTENCE_FIGURES,
    "Chatbot of a cafe (R0)": CAFE_FIGURES,
    "Chatbot of general knowledge (R1)": WIKI_FIGURES,
    "Weaknesses (R5)": CHATBOT_WEAKNESSES + MODEL_WEAKNESSES,
}
