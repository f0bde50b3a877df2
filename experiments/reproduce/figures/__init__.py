"""All figures by section, each section in the order of its tutorial."""

from experiments.reproduce.figure import Figure
from experiments.reproduce.figures import (
    cafe,
    completion,
    layers,
    rows,
    sentences,
    tagging,
    weak_chatbots,
    weak_models,
    wiki,
    words,
)

SECTIONS: dict[str, list[Figure]] = {
    "Layers (R0, R2)": layers.FIGURES,
    "Tags of subject, verb and object (R2)": tagging.FIGURES,
    "MNIST by rows (R3)": rows.FIGURES,
    "Completion of words (R3)": completion.FIGURES,
    "Translation of words (R3)": words.FIGURES,
    "Translation of sentences (R4)": sentences.FIGURES,
    "Chatbot of a cafe (R0)": cafe.FIGURES,
    "Chatbot of general knowledge (R1)": wiki.FIGURES,
    "Weaknesses (R5)": weak_chatbots.FIGURES + weak_models.FIGURES,
}
