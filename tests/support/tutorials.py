"""The words and sentences of the tutorials, as the tutorials print them."""

from support.texts import QUESTIONS

WORDS = ("word", "wood", "deep", "dive", "cold", "cool", "load", "love", "kiss", "kind")
SENTENCES = ["John/S loves/V Jane/O", "Jane/S loves/V Alex/O"]
TAUGHT = {
    "word_translation": {
        "word": "단어",
        "wood": "나무",
        "game": "놀이",
        "girl": "소녀",
        "kiss": "키스",
        "love": "사랑",
    },
    "sentence_translation": {
        "Hello.": "안녕하세요.",
        "How are you?": "잘 지내니?",
        "What is your name?": "너의 이름이 뭐니?",
        "I'm hungry.": "나 배고파.",
        "How old are you?": "너는 몇 살이니?",
    },
    "cafe_chatbot": {question: answer for question, answer, _ in QUESTIONS},
}
# Misspelt words, unknown letters, a text too long to be read whole, one without letters, no text.
UNSEEN = ("wodr", "loev", "abcd", "Helo.", "How old is he?", "라떼요?", "여나요 " * 9, " ", "")

# Tolerance of losses, of replies' log-probabilities and of logits, relative, and absolute below 1.
# Both sides compute the same sums, but seqjax in float32, whose neighbouring numbers between 8 and
# 16 are 1e-6 apart: logits are such numbers, and the others are differences of logits. The largest
# differences seen were 2e-7 in a loss, 4e-7 in logits, and in the log-probability of a reply, a sum
# over its tokens, 2e-6 below 3 nats and 8e-6 at 12 nats.
TOLERANCE = 4e-6
