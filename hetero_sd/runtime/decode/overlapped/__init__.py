"""Overlapped speculation: the drafter goes on while the target verifies, each in a thread of its own.

The target's thread (the caller's, target_side.py) owns the text. The drafter's (draft_side.py, draft_thread.py) owns
the drafter and a copy of the text that runs ahead. They share nothing but two queues (messages.py):

    drafter -> target   Drafts(epoch, position, tokens)   in order; after a miss held back until there are `least`
    target -> drafter   Verdict(length, token)            one per step of the target: the text is certain up to
                                                          `length`, and its last token is `token`, the target's own

A verdict is a hit where the copy has that token at that position, or ends just before it: what was drafted since stays
valid. Otherwise it is a miss: the drafter rolls its cache back by length, takes the token, and goes on from there. Both
sides count misses, in `epoch`, by comparing the same two tokens, so no other message is needed for it; drafts of an
older epoch are dropped on arrival. The target compares a draft that arrives after the token of its place was decided
when it arrives; therefore the drafter sends what it holds back before it judges a verdict, or the epochs would part.

`least` is how many drafts the target waits for: all of them, or 0, with which it starts at once after a miss and judges
the first draft while that is being drafted (PEARL, arXiv 2408.11850). Sampled tokens depend on what was drafted, so
there the target waits for all, and each draft is drawn with random numbers of its position: a run repeats by its seed.
Epochs would not do, for whether a bonus token is a miss depends on how far the drafter has come. A position's numbers
may be drawn twice, but only where no draft of it was judged before, so that the text does not depend on them yet.
"""
