"""The words and sentences of the tutorials, as they print them."""

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
# Misspelt, of other letters, too long to be read whole, without a letter, without anything.
UNSEEN = ("wodr", "loev", "abcd", "Helo.", "How old is he?", "라떼요?", "여나요 " * 9, " ", "")

# Relative, and absolute below 1, of losses, of replies' nats and of logits. Both sides compute the
# same sums, seqjax in float32, where numbers of 8 to 16 lie 1e-6 apart: logits are such numbers,
# and the others differences of them. Seen were 2e-7 of a loss, 4e-7 in logits, and in a reply's
# nats, which are a sum over its tokens, 2e-6 below 3 nats and 8e-6 of 12.
TOLERANCE = 4e-6
