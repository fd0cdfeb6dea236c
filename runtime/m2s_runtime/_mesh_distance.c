/* Exact distance from the voxels of a regular grid to a triangle mesh.
 *
 * A bounding volume hierarchy with eight children a node and eight triangles a leaf, both stored lane by lane so that
 * one vector instruction handles all eight. Boxes are oriented along the mean normal of what they hold: a patch of a
 * smooth surface is flat, and an axis-aligned box around a slanted patch would be so loose that most visits to it are
 * in vain. Neighbouring voxels have neighbouring nearest points, so each search starts from its neighbour's leaf.
 *
 * Distances are single precision; vertices should be given around the origin. Branch-and-bound never discards a leaf
 * on rounding alone (see MARGIN), so the result does not depend on the order of visits, nor on the number of threads:
 * those are the caller's, one call a slab, with the GIL released.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define LANES 8
#define FAR_AWAY 1e15f         /* where the box of an unused lane lies; its square is still finite */
#define FARTHEST 0x5368D4A5u   /* bits of 1e12f, the bound of coordinates; those of infinity and NaN are greater */
#define MARGIN 2e-6f           /* boxes grow by this part of the largest coordinate, far above the rounding */
#define ALIGNMENT 64           /* a cache line */
#define STACK 128              /* 7 siblings wait at each of at most 10 levels (2^31 / 3 triangles) */
#define NAME "m2s_runtime._mesh_distance.tree"

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

INLINE float above(float x, float y) { return x > y ? x : y; }
INLINE float below(float x, float y) { return x < y ? x : y; }

typedef struct {
    float axis[3][3][LANES]; /* [direction][component]: the box's frame */
    float centre[3][LANES];  /* in that frame */
    float half[3][LANES];
    int32_t child[LANES];    /* a node, or ~leaf */
} Node;

typedef struct {
    float a[3][LANES], u[3][LANES], v[3][LANES], n[3][LANES]; /* corner, two edges, unit normal */
    float uu[LANES], uv[LANES], vv[LANES];
    float per_uu[LANES], per_vv[LANES], per_ww[LANES], per_area[LANES]; /* reciprocals, 0 where degenerate */
} Leaf;

typedef struct {
    Node *nodes;
    Leaf *leaves;
    int32_t node_count, leaf_count;
    void *raw_nodes, *raw_leaves; /* as allocated, before alignment */
} Tree;

/* ------------------------------------------------------------------------------------------------ construction */

typedef struct {
    Tree *tree;
    const float *points;
    const int32_t *faces;
    float *centroids;
    int32_t *order; /* triangles, permuted so that each subtree owns a range */
    float margin;
} Builder;

typedef struct {
    float axis[3][3], low[3], high[3];
} Box;

static const float *corner(const Builder *b, int32_t slot, int which) {
    return b->points + 3 * (size_t)b->faces[3 * (size_t)b->order[slot] + which];
}

static double dot(const double *p, const double *q) { return p[0] * q[0] + p[1] * q[1] + p[2] * q[2]; }

static void cross(const double *p, const double *q, double *out) {
    for (int i = 0; i < 3; i++) {
        int j = (i + 1) % 3, k = (i + 2) % 3;
        out[i] = p[j] * q[k] - p[k] * q[j];
    }
}

/* Order the range so that its slots below `middle` hold the smaller centroids along `axis` (Hoare's selection). */
static void partition(Builder *b, int32_t first, int32_t last, int32_t middle, int axis) {
    int32_t *order = b->order;
    while (first < last) {
        float pivot = b->centroids[3 * (size_t)order[first + (last - first) / 2] + axis];
        int32_t i = first, j = last;
        while (i <= j) {
            while (b->centroids[3 * (size_t)order[i] + axis] < pivot) i++;
            while (b->centroids[3 * (size_t)order[j] + axis] > pivot) j--;
            if (i <= j) {
                int32_t swap = order[i];
                order[i++] = order[j];
                order[j--] = swap;
            }
        }
        if (middle <= j) last = j;
        else if (middle >= i) first = i;
        else return;
    }
}

static int longest_axis(const Builder *b, int32_t first, int32_t end) {
    float low[3] = {FLT_MAX, FLT_MAX, FLT_MAX}, high[3] = {-FLT_MAX, -FLT_MAX, -FLT_MAX};
    for (int32_t s = first; s < end; s++)
        for (int i = 0; i < 3; i++) {
            float value = b->centroids[3 * (size_t)b->order[s] + i];
            low[i] = fminf(low[i], value);
            high[i] = fmaxf(high[i], value);
        }
    int best = 0;
    for (int i = 1; i < 3; i++)
        if (high[i] - low[i] > high[best] - low[best]) best = i;
    return best;
}

/* Cut [first, end) into ranges of `unit` leaves, all full but the last; append their ends. */
static void split(Builder *b, int32_t first, int32_t end, int32_t unit, int32_t *ends, int *count) {
    int32_t units = (end - first + LANES * unit - 1) / (LANES * unit);
    if (units <= 1) {
        ends[(*count)++] = end;
        return;
    }
    int32_t middle = first + (units + 1) / 2 * LANES * unit;
    partition(b, first, end - 1, middle, longest_axis(b, first, end));
    split(b, first, middle, unit, ends, count);
    split(b, middle, end, unit, ends, count);
}

static double half_area(const Box *box) {
    double e[3];
    for (int i = 0; i < 3; i++) e[i] = (double)box->high[i] - box->low[i];
    return e[0] * e[1] + e[1] * e[2] + e[2] * e[0];
}

static void fit(const Builder *b, int32_t first, int32_t end, Box *box) {
    for (int i = 0; i < 3; i++) box->low[i] = FLT_MAX, box->high[i] = -FLT_MAX;
    for (int32_t s = first; s < end; s++)
        for (int c = 0; c < 3; c++) {
            const float *p = corner(b, s, c);
            for (int i = 0; i < 3; i++) {
                float along = p[0] * box->axis[i][0] + p[1] * box->axis[i][1] + p[2] * box->axis[i][2];
                box->low[i] = fminf(box->low[i], along);
                box->high[i] = fmaxf(box->high[i], along);
            }
        }
}

/* The tighter of the axis-aligned box and the one along the mean normal. */
static void enclose(const Builder *b, int32_t first, int32_t end, Box *box) {
    double normal[3] = {0, 0, 0};
    for (int32_t s = first; s < end; s++) {
        const float *p = corner(b, s, 0), *q = corner(b, s, 1), *r = corner(b, s, 2);
        double u[3], v[3], n[3];
        for (int i = 0; i < 3; i++) u[i] = (double)q[i] - p[i], v[i] = (double)r[i] - p[i];
        cross(u, v, n);
        for (int i = 0; i < 3; i++) normal[i] += n[i];
    }
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) box->axis[i][j] = i == j;
    fit(b, first, end, box);
    double length = sqrt(dot(normal, normal));
    if (length == 0) return;
    double frame[3][3], least[3] = {0, 0, 0};
    int smallest = 0;
    for (int i = 0; i < 3; i++) {
        frame[0][i] = normal[i] / length;
        if (fabs(frame[0][i]) < fabs(frame[0][smallest])) smallest = i;
    }
    least[smallest] = 1;
    cross(frame[0], least, frame[1]);
    length = sqrt(dot(frame[1], frame[1]));
    for (int i = 0; i < 3; i++) frame[1][i] /= length;
    cross(frame[0], frame[1], frame[2]);
    Box oriented;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) oriented.axis[i][j] = (float)frame[i][j];
    fit(b, first, end, &oriented);
    if (half_area(&oriented) < half_area(box)) *box = oriented;
}

/* Corner at the largest angle: there the two edges are the best conditioned frame of the triangle. */
static int widest_corner(double p[3][3]) {
    int best = 0;
    double longest = -1;
    for (int c = 0; c < 3; c++) {
        double edge[3];
        for (int i = 0; i < 3; i++) edge[i] = p[(c + 2) % 3][i] - p[(c + 1) % 3][i];
        if (dot(edge, edge) > longest) longest = dot(edge, edge), best = c;
    }
    return best;
}

static void fill_lane(const Builder *b, Leaf *leaf, int lane, int32_t slot) {
    double p[3][3], u[3], v[3], n[3];
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 3; i++) p[c][i] = corner(b, slot, c)[i];
    int c = widest_corner(p);
    for (int i = 0; i < 3; i++) u[i] = p[(c + 1) % 3][i] - p[c][i], v[i] = p[(c + 2) % 3][i] - p[c][i];
    cross(u, v, n);
    double uu = dot(u, u), uv = dot(u, v), vv = dot(v, v), ww = uu + vv - 2 * uv, area = dot(n, n);
    int flat = area <= 1e-12 * uu * vv; /* a needle: its edges are all there is */
    for (int i = 0; i < 3; i++) {
        leaf->a[i][lane] = (float)p[c][i];
        leaf->u[i][lane] = (float)u[i];
        leaf->v[i][lane] = (float)v[i];
        leaf->n[i][lane] = flat ? 0.f : (float)(n[i] / sqrt(area));
    }
    leaf->uu[lane] = (float)uu, leaf->uv[lane] = (float)uv, leaf->vv[lane] = (float)vv;
    leaf->per_uu[lane] = uu > 0 ? (float)(1 / uu) : 0.f;
    leaf->per_vv[lane] = vv > 0 ? (float)(1 / vv) : 0.f;
    leaf->per_ww[lane] = ww > 0 ? (float)(1 / ww) : 0.f;
    leaf->per_area[lane] = flat ? 0.f : (float)(1 / area);
}

static void set_child(const Builder *b, Node *node, int lane, const Box *box, int32_t child) {
    for (int i = 0; i < 3; i++) {
        for (int j = 0; j < 3; j++) node->axis[i][j][lane] = box->axis[i][j];
        node->centre[i][lane] = (box->low[i] + box->high[i]) / 2;
        node->half[i][lane] = (box->high[i] - box->low[i]) / 2 + b->margin;
    }
    node->child[lane] = child;
}

/* The children of one node: ranges of [first, end) that are leaves or, recursively, nodes. */
static int32_t build(Builder *b, int32_t first, int32_t end) {
    static const Box nowhere = {{{0}}, {FAR_AWAY, FAR_AWAY, FAR_AWAY}, {FAR_AWAY, FAR_AWAY, FAR_AWAY}};
    int32_t me = b->tree->node_count++, ends[LANES], unit = 1, child = 0;
    int count = 0;
    while (LANES * LANES * (int64_t)unit < end - first) unit *= LANES;
    split(b, first, end, unit, ends, &count);
    for (int lane = 0; lane < count; first = ends[lane++]) {
        Box box;
        enclose(b, first, ends[lane], &box);
        if (ends[lane] - first > LANES) {
            child = build(b, first, ends[lane]);
        } else {
            Leaf *leaf = b->tree->leaves + b->tree->leaf_count;
            child = ~b->tree->leaf_count++;
            for (int k = 0; k < LANES; k++) fill_lane(b, leaf, k, first + k < ends[lane] ? first + k : ends[lane] - 1);
        }
        set_child(b, b->tree->nodes + me, lane, &box, child);
    }
    /* Any child will do for a box that no search reaches, but not the root: searches must end whatever they are fed. */
    for (int lane = count; lane < LANES; lane++) set_child(b, b->tree->nodes + me, lane, &nowhere, child);
    return me;
}

/* ------------------------------------------------------------------------------------------------------ search */

/* Squared distance from w to the segment from the origin to e, where `along` = w.e / e.e before clamping. */
INLINE float to_segment(float wx, float wy, float wz, float ex, float ey, float ez, float along) {
    along = below(above(along, 0.f), 1.f);
    wx -= along * ex, wy -= along * ey, wz -= along * ez;
    return wx * wx + wy * wy + wz * wz;
}

/* Least squared distance from p to the triangles of a leaf. */
INLINE float to_leaf(const Leaf *leaf, float px, float py, float pz) {
    float found[LANES];
#pragma omp simd
    for (int k = 0; k < LANES; k++) {
        float ux = leaf->u[0][k], uy = leaf->u[1][k], uz = leaf->u[2][k];
        float vx = leaf->v[0][k], vy = leaf->v[1][k], vz = leaf->v[2][k];
        float wx = px - leaf->a[0][k], wy = py - leaf->a[1][k], wz = pz - leaf->a[2][k];
        float wu = wx * ux + wy * uy + wz * uz, wv = wx * vx + wy * vy + wz * vz;
        float uu = leaf->uu[k], uv = leaf->uv[k], vv = leaf->vv[k];
        float s = (vv * wu - uv * wv) * leaf->per_area[k], t = (uu * wv - uv * wu) * leaf->per_area[k];
        float plane = wx * leaf->n[0][k] + wy * leaf->n[1][k] + wz * leaf->n[2][k];
        float edge = to_segment(wx, wy, wz, ux, uy, uz, wu * leaf->per_uu[k]);
        edge = below(edge, to_segment(wx, wy, wz, vx, vy, vz, wv * leaf->per_vv[k]));
        float third = ((wv - uv) - (wu - uu)) * leaf->per_ww[k];
        edge = below(edge, to_segment(wx - ux, wy - uy, wz - uz, vx - ux, vy - uy, vz - uz, third));
        /* Over the face when all three barycentric coordinates are positive; a needle has s = t = 0. */
        float least = below(below(s, t), 1.f - s - t);
        found[k] = least > 0.f ? plane * plane : edge;
    }
    float best = found[0];
    for (int k = 1; k < LANES; k++) best = below(best, found[k]);
    return best;
}

/* Squared distance from p to each box of a node. */
INLINE void to_boxes(const Node *node, float px, float py, float pz, float *found) {
#pragma omp simd
    for (int k = 0; k < LANES; k++) {
        float sum = 0.f;
        for (int i = 0; i < 3; i++) {
            float at = px * node->axis[i][0][k] + py * node->axis[i][1][k] + pz * node->axis[i][2][k];
            float outside = above(fabsf(at - node->centre[i][k]) - node->half[i][k], 0.f);
            sum += outside * outside;
        }
        found[k] = sum;
    }
}

/* Squared distance from p to the mesh; `warm` is a leaf to begin with and becomes the nearest one. */
INLINE float nearest(const Tree *tree, float px, float py, float pz, int32_t *warm) {
    float best = to_leaf(tree->leaves + *warm, px, py, pz);
    int32_t waiting[STACK];
    float bound[STACK];
    int depth = 1;
    int32_t start = *warm;
    waiting[0] = 0, bound[0] = 0.f;
    while (depth) {
        if (bound[--depth] >= best) continue;
        int32_t at = waiting[depth];
        if (at < 0) {
            if (~at == start) continue;
            float distance = to_leaf(tree->leaves + ~at, px, py, pz);
            if (distance < best) best = distance, *warm = ~at;
            continue;
        }
        const Node *node = tree->nodes + at;
        float boxes[LANES];
        to_boxes(node, px, py, pz, boxes);
        for (int k = 0; k < LANES; k++) /* unsorted: from a warm start the order hardly matters */
            if (boxes[k] < best) bound[depth] = boxes[k], waiting[depth++] = node->child[k];
    }
    return best;
}

typedef struct {
    const Tree *tree;
    float *out;
    Py_ssize_t shape[3];
    double origin[3], spacing[3];
} Slab;

INLINE void search(const Slab *slab) {
    int32_t row = 0;
    float *out = slab->out;
    for (Py_ssize_t i = 0; i < slab->shape[0]; i++) {
        float x = (float)(slab->origin[0] + (double)i * slab->spacing[0]);
        for (Py_ssize_t j = 0; j < slab->shape[1]; j++) {
            float y = (float)(slab->origin[1] + (double)j * slab->spacing[1]);
            int32_t warm = row;
            for (Py_ssize_t k = 0; k < slab->shape[2]; k++) {
                float z = (float)(slab->origin[2] + (double)k * slab->spacing[2]);
                *out++ = sqrtf(nearest(slab->tree, x, y, z, &warm));
                if (k == 0) row = warm;
            }
        }
    }
}

static void search_baseline(const Slab *slab) { search(slab); }

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
__attribute__((target("avx2,fma"))) static void search_avx2(const Slab *slab) { search(slab); }
#define HAVE_AVX2() (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#else
#define search_avx2 search_baseline
#define HAVE_AVX2() 0
#endif

/* ------------------------------------------------------------------------------------------------------ Python */

static void *aligned(size_t size, void **raw) {
    *raw = calloc(1, size + ALIGNMENT);
    return *raw ? (char *)*raw + (ALIGNMENT - (uintptr_t)*raw % ALIGNMENT) : NULL;
}

static void release(Tree *tree) {
    if (!tree) return;
    free(tree->raw_nodes);
    free(tree->raw_leaves);
    free(tree);
}

static void release_capsule(PyObject *capsule) { release(PyCapsule_GetPointer(capsule, NAME)); }

static Tree *grow(const float *points, const int32_t *faces, int32_t face_count, float reach) {
    size_t leaves = ((size_t)face_count + LANES - 1) / LANES;
    Tree *tree = calloc(1, sizeof *tree);
    Builder b = {.tree = tree, .points = points, .faces = faces};
    b.centroids = malloc(3 * sizeof(float) * (size_t)face_count);
    b.order = malloc(sizeof(int32_t) * (size_t)face_count);
    if (tree) {
        tree->leaves = aligned(sizeof(Leaf) * leaves, &tree->raw_leaves);
        tree->nodes = aligned(sizeof(Node) * (leaves + 1), &tree->raw_nodes);
    }
    int ready = tree && tree->leaves && tree->nodes && b.centroids && b.order;
    if (ready) {
        for (int32_t t = 0; t < face_count; t++) b.order[t] = t;
        for (int32_t t = 0; t < face_count; t++)
            for (int i = 0; i < 3; i++) {
                float p = corner(&b, t, 0)[i], q = corner(&b, t, 1)[i], r = corner(&b, t, 2)[i];
                b.centroids[3 * (size_t)t + i] = (p + q + r) / 3;
                reach = above(reach, above(fabsf(p), above(fabsf(q), fabsf(r))));
            }
        b.margin = MARGIN * reach;
        build(&b, 0, face_count);
    }
    free(b.centroids);
    free(b.order);
    if (ready) return tree;
    release(tree);
    return NULL;
}

static const char *flaw(const Py_buffer *points, const Py_buffer *faces) {
    if (points->len % (3 * sizeof(float)) || faces->len % (3 * sizeof(int32_t))) return "rows of three are needed";
    size_t vertex_count = (size_t)points->len / (3 * sizeof(float));
    size_t corner_count = (size_t)faces->len / sizeof(int32_t);
    if (!corner_count || corner_count > INT32_MAX) return "between 1 and 2^31 / 3 faces are needed";
    /* By their bits, for this file is compiled on the understanding that floats are finite. */
    const uint32_t *bits = points->buf;
    for (size_t c = 0; c < 3 * vertex_count; c++)
        if ((bits[c] & 0x7FFFFFFFu) > FARTHEST) return "a vertex is NaN, infinite or too far away";
    const int32_t *index = faces->buf;
    for (size_t c = 0; c < corner_count; c++)
        if (index[c] < 0 || (size_t)index[c] >= vertex_count) return "a face names a vertex that does not exist";
    return NULL;
}

static PyObject *py_grow(PyObject *module, PyObject *args) {
    Py_buffer points, faces;
    float reach;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*f", &points, &faces, &reach)) return NULL;
    const char *wrong = flaw(&points, &faces);
    Tree *tree = NULL;
    if (!wrong) {
        int32_t face_count = (int32_t)(faces.len / (Py_ssize_t)(3 * sizeof(int32_t)));
        Py_BEGIN_ALLOW_THREADS
        tree = grow(points.buf, faces.buf, face_count, reach);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&points);
    PyBuffer_Release(&faces);
    if (wrong) {
        PyErr_SetString(PyExc_ValueError, wrong);
        return NULL;
    }
    if (!tree) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(tree, NAME, release_capsule);
    if (!capsule) release(tree);
    return capsule;
}

static PyObject *py_fill(PyObject *module, PyObject *args) {
    PyObject *capsule;
    Py_buffer out;
    Slab slab;
    (void)module;
    if (!PyArg_ParseTuple(args, "Ow*(nnn)(ddd)(ddd)", &capsule, &out, &slab.shape[0], &slab.shape[1], &slab.shape[2],
                          &slab.origin[0], &slab.origin[1], &slab.origin[2], &slab.spacing[0], &slab.spacing[1],
                          &slab.spacing[2]))
        return NULL;
    slab.tree = PyCapsule_GetPointer(capsule, NAME);
    slab.out = out.buf;
    Py_ssize_t room = out.len / (Py_ssize_t)sizeof(float);
    int fits = 1;
    for (int i = 0; i < 3; i++) {
        fits = fits && slab.shape[i] > 0 && slab.shape[i] <= room;
        if (fits) room /= slab.shape[i];
    }
    if (slab.tree && fits) {
        Py_BEGIN_ALLOW_THREADS
        if (HAVE_AVX2()) search_avx2(&slab);
        else search_baseline(&slab);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&out);
    if (!slab.tree) return NULL;
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the shape does not fit the buffer");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"grow", py_grow, METH_VARARGS,
     "grow(points, faces, reach): tree over float32 (V, 3) points and int32 (F, 3) faces; no query coordinate may "
     "exceed `reach`."},
    {"fill", py_fill, METH_VARARGS, "fill(tree, out, shape, origin, spacing): write distances to float32 `out`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_mesh_distance", "Exact distance from a grid to a triangle mesh.", 0, methods, NULL, NULL,
    NULL, NULL,
};

PyMODINIT_FUNC PyInit__mesh_distance(void) { return PyModuleDef_Init(&definition); }
