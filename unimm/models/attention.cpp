// Causal attention of documents that lie one after another, each to itself, forward and backward, on a CPU.
//
// A thread takes a document and a head of keys. Scores are made turned, keys down and a block of queries across the lanes of
// vectors, so a softmax goes down and no lane needs another; the scores of a block stay in the caches. Of a softmax one number a
// query is kept for the backward pass, the logarithm of its denominator, from which weights are made again (arXiv 2205.14135).
//
// What is multiplied lies in words of 32 bits: a float32, or two bfloat16 that are summed over together, which AVX512-BF16
// multiplies and adds in one instruction. Vectors are the compiler's own; what its processor has in one instruction is named.
//
// Shapes: N positions, M of them ask, H heads, G heads of keys that H heads share, E head width.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "vectors.h"

namespace {

// Sums that stay in registers: a tile of ROWS x COLUMNS vectors.
constexpr int ROWS = 4;
constexpr int COLUMNS = 2;
// Queries that are looked at together; a row's width is rounded up to as many elements.
constexpr int BLOCK = COLUMNS * LANES;
constexpr float HIDDEN = -1e30f;

using Tile = Floats[ROWS][COLUMNS];

struct Float32 {
    static constexpr int PER_WORD = 1;
    static Floats exp2(Floats x) { return power_of_two(x, EXP2_QUINTIC); }

    static Floats add_product(Floats sum, Words a, Words b) { return sum + as<Floats>(a) * as<Floats>(b); }
    // Columns of a tile's row, side by side.
    static void put_row(Word* to, const Floats (&row)[COLUMNS]) {
        for (int c = 0; c < COLUMNS; ++c) store(to + c * LANES, row[c]);
    }
    // All rows of a tile, so that words which are summed over together go down.
    static void put_down(Word* to, const Tile& x) {
        for (int r = 0; r < ROWS; ++r) put_row(to + r * BLOCK, x[r]);
    }
    // Rows of elements to words that go down: (n, width) -> (n, width); row i and `apart` further ones are one word.
    static void turn_down(Word* to, const Word* rows, long num_rows, long width, long) {
        std::memcpy(to, rows, num_rows * width * sizeof(Word));
    }
};

struct BFloat16 {
    static constexpr int PER_WORD = 2;
    static Floats exp2(Floats x) { return power_of_two(x, EXP2_CUBIC); }  // a bfloat16 is to 2e-3

#ifdef __AVX512BF16__
    static Floats add_product(Floats sum, Words a, Words b) {
        return as<Floats>(_mm512_dpbf16_ps(as<__m512>(sum), as<__m512bh>(a), as<__m512bh>(b)));
    }
#else
    static Floats add_product(Floats sum, Words a, Words b) {
        return sum + as<Floats>(a << 16) * as<Floats>(b << 16) + as<Floats>(a & 0xffff0000u) * as<Floats>(b & 0xffff0000u);
    }
#endif
    static Words pair(Floats low, Floats high) { return to_bfloat16(low) | to_bfloat16(high) << 16; }

    static void put_row(Word* to, const Floats (&row)[COLUMNS]) { store(to, pair(row[0], row[1])); }
    static void put_down(Word* to, const Tile& x) {
        for (int r = 0; r < ROWS; r += 2)
            for (int c = 0; c < COLUMNS; ++c) store(to + r / 2 * BLOCK + c * LANES, pair(x[r][c], x[r + 1][c]));
    }
    static void turn_down(Word* to, const Word* rows, long num_rows, long width, long apart) {
        const long words = width / 2;
        for (long i = 0; i < num_rows / 2; ++i) {
            const Word* row = rows + (i / apart * 2 * apart + i % apart) * words;
            for (long w = 0; w < words; w += LANES) {
                const Words low = load<Words>(row + w), high = load<Words>(row + apart * words + w);
                store(to + i * width + 2 * w, (low & 0xffffu) | high << 16);
                store(to + i * width + 2 * w + LANES, low >> 16 | (high & 0xffff0000u));
            }
        }
    }
};

// sum[r, c] += sum over k of a[r, k] * b[k, c]; all strides in words.
template <class T>
inline void add_products(Tile& sum, const Word* a, long row, long step, const Word* b, long b_step, long num_steps) {
    for (long k = 0; k < num_steps; ++k, a += step, b += b_step) {
        Words right[COLUMNS];
        for (int c = 0; c < COLUMNS; ++c) right[c] = load<Words>(b + c * LANES);
        for (int r = 0; r < ROWS; ++r) {
            const Words left = a[r * row] - Words{};
            for (int c = 0; c < COLUMNS; ++c) sum[r][c] = T::add_product(sum[r][c], left, right[c]);
        }
    }
}

// LANES rows of LANES words, columns for rows; strides in words.
inline void turn_square(Word* to, long to_row, const Word* from, long from_row) {
#ifdef __AVX512F__
    Words x[LANES];
    for (int i = 0; i < LANES; ++i) x[i] = load<Words>(from + i * from_row);
    const Words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int far = 1; far < LANES; far *= 2) {
        // Of rows i and i + far, squares of far lanes that lie across from each other change places.
        const auto low = as<__m512i>((lane & far) != 0 ? lane + (LANES - far) : lane);
        const auto high = as<__m512i>((lane & far) != 0 ? lane + LANES : lane + far);
        for (int i = 0; i < LANES; ++i) {
            if (i & far) continue;
            const auto a = as<__m512i>(x[i]), b = as<__m512i>(x[i + far]);
            x[i] = as<Words>(_mm512_permutex2var_epi32(a, low, b));
            x[i + far] = as<Words>(_mm512_permutex2var_epi32(a, high, b));
        }
    }
    for (int i = 0; i < LANES; ++i) store(to + i * to_row, x[i]);
#else
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < LANES; ++j) to[j * to_row + i] = from[i * from_row + j];
#endif
}

long rounded_up(long n, long to) { return (n + to - 1) / to * to; }

}  // namespace

// What is asked for; positions of documents follow one another, of padding too.
struct Documents {
    long num_documents, num_heads, num_key_heads, width;
    const int64_t* starts;         // (num_documents + 1): of their positions among N
    const int64_t* first_queries;  // (num_documents + 1): of theirs among M
    const int64_t* positions;      // (M,) rising, among N; null: all of N ask
    const bool* is_padding;        // (num_documents,)
};

namespace {

// Queries of one document that are looked at together.
struct Block {
    long first;
    int num_queries;
    int positions[BLOCK];  // in the document

    Block(const Documents& all, long document, long first)
        : first(first), num_queries(int(std::min<long>(BLOCK, all.first_queries[document + 1] - first))) {
        for (int i = 0; i < BLOCK; ++i) {
            const long query = first + std::min(i, num_queries - 1);
            positions[i] = int((all.positions ? all.positions[query] : query) - all.starts[document]);
        }
    }
    // Keys that the first queries see, a multiple of ROWS.
    long num_keys(int of_queries) const { return rounded_up(positions[std::min(of_queries, num_queries) - 1] + 1, ROWS); }
    long num_keys() const { return num_keys(num_queries); }

    // HIDDEN where a query may not look.
    void hide(Tile& scores_jl, long first_key) const {
        if (first_key + ROWS - 1 <= positions[0]) return;
        for (int r = 0; r < ROWS; ++r)
            for (int c = 0; c < COLUMNS; ++c)
                scores_jl[r][c] = int(first_key) + r - Ints{} <= load<Ints>(positions + c * LANES) ? scores_jl[r][c] : all(HIDDEN);
    }
};

// Memory of a thread, kept from call to call.
class Room {
  public:
    Word* take(size_t num_words) {
        if (taken_ == pieces_.size()) pieces_.emplace_back();
        auto& [piece, size] = pieces_[taken_++];
        if (size < num_words) piece.reset(new (std::align_val_t(BYTES)) Word[size = num_words * 5 / 4]);
        return piece.get();
    }
    float* take_floats(size_t n) { return reinterpret_cast<float*>(take(n)); }
    void clear() { taken_ = 0; }

  private:
    struct Freed {
        void operator()(Word* piece) const { ::operator delete[](piece, std::align_val_t(BYTES)); }
    };
    std::vector<std::pair<std::unique_ptr<Word[], Freed>, size_t>> pieces_;
    size_t taken_ = 0;
};

// One document and one head of keys.
template <class T>
class Head {
  public:
    Head(const Documents& all, long document, long key_head, Room& room)
        : all_(all), document_(document), key_head_(key_head), num_positions_(all.starts[document + 1] - all.starts[document]),
          num_rows_(rounded_up(num_positions_, ROWS)), width_(rounded_up(all.width, BLOCK)), row_words_(width_ / T::PER_WORD),
          words_(all.width / T::PER_WORD), room_(room) {
        room.clear();
        for (Word** piece : {&queries_, &slopes_, &turned_, &turned_slopes_, &turned_seen_}) *piece = room.take(BLOCK * row_words_);
        keys_ = room.take(num_rows_ * row_words_);
        values_ = room.take(num_rows_ * row_words_);
        down_ = room.take(num_rows_ * row_words_);
        weights_down_ = room.take(num_rows_ * BLOCK);
    }

    void forward(const Word* q_MHE, const Word* k_NGE, const Word* v_NGE, Word* seen_MHE, float* denominator_MH) {
        read_keys(keys_, k_NGE);
        read_keys(values_, v_NGE);
        T::turn_down(down_, values_, num_rows_, width_, 1);
        float* scores = room_.take_floats(num_rows_ * BLOCK);
        each_block([&](const Block& block, long head) {
            read_queries(turned_, queries_, q_MHE, block, head);
            Floats most[COLUMNS], total[COLUMNS] = {};
            for (auto& each : most) each = all(HIDDEN);
            for (long j = 0; j < block.num_keys(); j += ROWS) {
                Tile tile = {};
                add_products<T>(tile, keys_ + j * row_words_, row_words_, 1, turned_, BLOCK, words_);
                block.hide(tile, j);
                for (int r = 0; r < ROWS; ++r)
                    for (int c = 0; c < COLUMNS; ++c) {
                        most[c] = tile[r][c] > most[c] ? tile[r][c] : most[c];
                        store(scores + (j + r) * BLOCK + c * LANES, tile[r][c]);
                    }
            }
            for (long j = 0; j < block.num_keys(); j += ROWS) {
                Tile tile;
                for (int r = 0; r < ROWS; ++r)
                    for (int c = 0; c < COLUMNS; ++c) {
                        tile[r][c] = T::exp2((load<Floats>(scores + (j + r) * BLOCK + c * LANES) - most[c]) * LOG2_E);
                        total[c] += tile[r][c];
                    }
                T::put_down(weights_down_ + j / T::PER_WORD * BLOCK, tile);
            }
            float factors[BLOCK];
            for (int c = 0; c < COLUMNS; ++c) store(factors + c * LANES, 1.0f / total[c]);
            for (int i = 0; i < block.num_queries; ++i) {
                const int c = i / LANES, lane = i % LANES;
                denominator_MH[(block.first + i) * all_.num_heads + head] = most[c][lane] + std::log(total[c][lane]);
            }
            write_sums(seen_MHE, factors, block, head);
        });
    }

    void backward(const Word* q_MHE, const Word* k_NGE, const Word* v_NGE, const Word* seen_MHE, const float* denominator_MH,
                  const Word* slope_MHE, Word* q_slope_MHE, Word* k_slope_NGE, Word* v_slope_NGE) {
        read_keys(keys_, k_NGE);
        read_keys(values_, v_NGE);
        T::turn_down(down_, keys_, num_rows_, width_, 1);
        Word *weights = room_.take(num_rows_ * BLOCK), *inner = room_.take(num_rows_ * BLOCK);
        Word *queries_down = room_.take(BLOCK * row_words_), *slopes_down = room_.take(BLOCK * row_words_);
        float *k_slope = room_.take_floats(num_rows_ * width_), *v_slope = room_.take_floats(num_rows_ * width_);
        std::fill_n(k_slope, num_rows_ * width_, 0.0f);
        std::fill_n(v_slope, num_rows_ * width_, 0.0f);
        float ones[BLOCK];
        std::fill_n(ones, BLOCK, 1.0f);
        each_block([&](const Block& block, long head) {
            read_queries(turned_seen_, queries_, seen_MHE, block, head);
            read_queries(turned_, queries_, q_MHE, block, head);
            read_queries(turned_slopes_, slopes_, slope_MHE, block, head);
            // A word holds what is LANES apart, as a tile's columns are.
            T::turn_down(queries_down, queries_, BLOCK, width_, LANES);
            T::turn_down(slopes_down, slopes_, BLOCK, width_, LANES);
            Floats mean[COLUMNS] = {}, denominator[COLUMNS] = {};
            for (long word = 0; word < words_; ++word)
                for (int c = 0; c < COLUMNS; ++c) {
                    const long at = word * BLOCK + c * LANES;
                    mean[c] = T::add_product(mean[c], load<Words>(turned_seen_ + at), load<Words>(turned_slopes_ + at));
                }
            for (int i = 0; i < BLOCK; ++i) {
                const bool asks = i < block.num_queries;
                denominator[i / LANES][i % LANES] = asks ? denominator_MH[(block.first + i) * all_.num_heads + head] : -HIDDEN;
            }
            for (long j = 0; j < block.num_keys(); j += ROWS) {
                Tile weight = {}, slope = {};
                add_products<T>(weight, keys_ + j * row_words_, row_words_, 1, turned_, BLOCK, words_);
                block.hide(weight, j);
                for (int r = 0; r < ROWS; ++r) {
                    for (int c = 0; c < COLUMNS; ++c) weight[r][c] = T::exp2((weight[r][c] - denominator[c]) * LOG2_E);
                    T::put_row(weights + (j + r) * (BLOCK / T::PER_WORD), weight[r]);
                }
                add_products<T>(slope, values_ + j * row_words_, row_words_, 1, turned_slopes_, BLOCK, words_);
                for (int r = 0; r < ROWS; ++r) {
                    for (int c = 0; c < COLUMNS; ++c) slope[r][c] = weight[r][c] * (slope[r][c] - mean[c]);
                    T::put_row(inner + (j + r) * (BLOCK / T::PER_WORD), slope[r]);
                }
                T::put_down(weights_down_ + j / T::PER_WORD * BLOCK, slope);
            }
            write_sums(q_slope_MHE, ones, block, head);
            add_by_key(v_slope, weights, slopes_down, block);
            add_by_key(k_slope, inner, queries_down, block);
        });
        write_keys(k_slope_NGE, k_slope);
        write_keys(v_slope_NGE, v_slope);
    }

  private:
    template <class Do>
    void each_block(Do&& work) {
        const long shared = all_.num_heads / all_.num_key_heads;
        for (long first = all_.first_queries[document_]; first < all_.first_queries[document_ + 1]; first += BLOCK) {
            const Block block(all_, document_, first);
            for (long head = key_head_ * shared; head < (key_head_ + 1) * shared; ++head) work(block, head);
        }
    }

    // Rows of a head, (num_rows, row_words_), zero beyond what there is.
    void read_rows(Word* to, const Word* from, long stride, long num_given, long num_rows) {
        for (long row = 0; row < num_rows; ++row, to += row_words_, from += stride) {
            const long given = row < num_given ? words_ : 0;
            for (long word = 0; word < given; ++word) to[word] = from[word];
            for (long word = given; word < row_words_; ++word) to[word] = 0;
        }
    }
    void read_keys(Word* to, const Word* from_NGE) {
        const long row = all_.num_key_heads * words_;
        read_rows(to, from_NGE + all_.starts[document_] * row + key_head_ * words_, row, num_positions_, num_rows_);
    }
    // A block's rows, (BLOCK, row_words_), and the same turned, (row_words_, BLOCK).
    void read_queries(Word* turned, Word* rows, const Word* from_MHE, const Block& block, long head) {
        const long row = all_.num_heads * words_;
        read_rows(rows, from_MHE + block.first * row + head * words_, row, block.num_queries, BLOCK);
        for (int i = 0; i < BLOCK; i += LANES)
            for (long word = 0; word < row_words_; word += LANES)
                turn_square(turned + word * BLOCK + i, BLOCK, rows + i * row_words_ + word, row_words_);
    }
    // A row's columns; those beyond its width are not written.
    void write_columns(Word* row, long column, const Floats (&sums)[COLUMNS]) {
        const long word = column / T::PER_WORD, num_words = std::min<long>(BLOCK / T::PER_WORD, words_ - word);
        if (num_words == BLOCK / T::PER_WORD) return T::put_row(row + word, sums);
        Word whole[BLOCK / T::PER_WORD];
        T::put_row(whole, sums);
        std::copy_n(whole, std::max(num_words, 0L), row + word);
    }
    // For each query what its weights make of the keys or values that lie in down_, times its factor.
    void write_sums(Word* to_MHE, const float* factors, const Block& block, long head) {
        for (int i = 0; i < block.num_queries; i += ROWS) {
            const long num_steps = block.num_keys(i + ROWS) / T::PER_WORD;
            for (long column = 0; column < width_; column += BLOCK) {
                Tile sum = {};
                add_products<T>(sum, weights_down_ + i, 1, BLOCK, down_ + column, width_, num_steps);
                for (int r = 0; r < std::min(ROWS, block.num_queries - i); ++r) {
                    for (Floats& each : sum[r]) each *= factors[i + r];
                    write_columns(to_MHE + ((block.first + i + r) * all_.num_heads + head) * words_, column, sum[r]);
                }
            }
        }
    }
    // Adds for each key what the queries that see it give it.
    void add_by_key(float* to, const Word* weights, const Word* queries_down, const Block& block) {
        constexpr long STEPS = BLOCK / T::PER_WORD;
        for (long j = 0; j < block.num_keys(); j += ROWS)
            for (long column = 0; column < width_; column += BLOCK) {
                Tile sum;
                float* at = to + j * width_ + column;
                for (int r = 0; r < ROWS; ++r)
                    for (int c = 0; c < COLUMNS; ++c) sum[r][c] = load<Floats>(at + r * width_ + c * LANES);
                add_products<T>(sum, weights + j * STEPS, STEPS, 1, queries_down + column, width_, STEPS);
                for (int r = 0; r < ROWS; ++r)
                    for (int c = 0; c < COLUMNS; ++c) store(at + r * width_ + c * LANES, sum[r][c]);
            }
    }
    void write_keys(Word* to_NGE, const float* sums) {
        Word* row = to_NGE + (all_.starts[document_] * all_.num_key_heads + key_head_) * words_;
        for (long i = 0; i < num_positions_; ++i, row += all_.num_key_heads * words_)
            for (long column = 0; column < width_; column += BLOCK) {
                Floats columns[COLUMNS];
                for (int c = 0; c < COLUMNS; ++c) columns[c] = load<Floats>(sums + i * width_ + column + c * LANES);
                write_columns(row, column, columns);
            }
    }

    const Documents& all_;
    const long document_, key_head_, num_positions_, num_rows_, width_, row_words_, words_;
    Room& room_;
    Word *queries_, *slopes_, *turned_, *turned_slopes_, *turned_seen_, *keys_, *values_, *down_, *weights_down_;
};

// Zero for what belongs to no document: rows of all heads.
void write_nothing(const int64_t* firsts, long document, long row_words, Word* to) {
    std::fill(to + firsts[document] * row_words, to + firsts[document + 1] * row_words, 0);
}

template <class Do>
void each_head(const Documents& all, Do&& work) {
#pragma omp parallel
    {
        static thread_local Room room;
#pragma omp for schedule(dynamic)
        for (long task = 0; task < all.num_documents * all.num_key_heads; ++task)
            work(task / all.num_key_heads, task % all.num_key_heads, room);
    }
}

template <class T>
void forward(const Documents& all, const Word* q, const Word* k, const Word* v, Word* seen, float* denominator) {
    const long words = all.width / T::PER_WORD;
    each_head(all, [&](long document, long key_head, Room& room) {
        if (!all.is_padding[document]) return Head<T>(all, document, key_head, room).forward(q, k, v, seen, denominator);
        if (key_head == 0) write_nothing(all.first_queries, document, all.num_heads * words, seen);
    });
}

template <class T>
void backward(const Documents& all, const Word* q, const Word* k, const Word* v, const Word* seen, const float* denominator,
              const Word* slope, Word* q_slope, Word* k_slope, Word* v_slope) {
    const long words = all.width / T::PER_WORD;
    each_head(all, [&](long document, long key_head, Room& room) {
        if (!all.is_padding[document])
            return Head<T>(all, document, key_head, room).backward(q, k, v, seen, denominator, slope, q_slope, k_slope, v_slope);
        if (key_head > 0) return;
        write_nothing(all.first_queries, document, all.num_heads * words, q_slope);
        write_nothing(all.starts, document, all.num_key_heads * words, k_slope);
        write_nothing(all.starts, document, all.num_key_heads * words, v_slope);
    });
}

}  // namespace

extern "C" {

// All tensors contiguous: q, seen, slope, q_slope (M, H, E); k, v and their slopes (N, G, E); denominator (M, H).
void attend(const Documents* all, bool is_bfloat16, const Word* q, const Word* k, const Word* v, Word* seen, float* denominator) {
    (is_bfloat16 ? forward<BFloat16> : forward<Float32>)(*all, q, k, v, seen, denominator);
}

void attend_backward(const Documents* all, bool is_bfloat16, const Word* q, const Word* k, const Word* v, const Word* seen,
                     const float* denominator, const Word* slope, Word* q_slope, Word* k_slope, Word* v_slope) {
    (is_bfloat16 ? backward<BFloat16> : backward<Float32>)(*all, q, k, v, seen, denominator, slope, q_slope, k_slope, v_slope);
}
}
