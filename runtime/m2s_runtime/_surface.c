/* Marching cubes with scikit-image's triangles, and what hangs together in a mesh.
 *
 * The tables are those of scikit-image (Lorensen and Cline 1987; Lewiner et al. 2003), the latter as they come out for
 * masks, where no value can decide an ambiguous cell. Vertices and faces, their order, and every bit of the positions
 * are those of `skimage.measure.marching_cubes`; what is left out is its normals, which nobody here asks for.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------------------------------------- marching cubes */

#define CENTRE 12
#define SLOTS 4 /* of a node: the edges along k, j and i that start there, and the middle of its cell */

/* Corners of a cell as (i, j, k), in the order of the bits of its case. */
static const int CORNERS[8][3] = {{0, 0, 0}, {0, 0, 1}, {0, 1, 1}, {0, 1, 0},
                                  {1, 0, 0}, {1, 0, 1}, {1, 1, 1}, {1, 1, 0}};

/* For each edge the two corners, the lower first, the axis along which it runs, and its slot at the lower corner. */
static const struct {
    int low, high, axis, slot;
} EDGES[12] = {{0, 1, 2, 0}, {1, 2, 1, 1}, {3, 2, 2, 0}, {0, 3, 1, 1}, {4, 5, 2, 0}, {5, 6, 1, 1},
               {7, 6, 2, 0}, {4, 7, 1, 1}, {0, 4, 0, 2}, {1, 5, 0, 2}, {2, 6, 0, 2}, {3, 7, 0, 2}};

/* For each case the corners of its triangles, three letters each: edges 0 to 11 are a to l, the middle is m. */
static const char *const LORENSEN[256] = {
    "", "aid", "abj", "bidjib", "bck", "aidbck", "jckacj", "cidckikji", "dlc", "alcila", "bjacdl", "blcbjljil",
    "dkblkd", "akbaikilk", "djadljlkj", "jikkil", "ehi", "edahde", "abjieh", "ebjehbhdb", "bckieh", "dehdaebck",
    "jckjacieh", "ckjcjhchdhje", "iehdlc", "lehlcecae", "jabiehcdl", "ehljeljlcjcb", "dkbdlkhie", "blkbelbaehle",
    "ehijaljlklad", "ehleljjlk", "jfe", "jfeaid", "afebfa", "ifeidfdbf", "bckjfe", "daibckejf", "fckfeceac",
    "ckfdcfdfedei", "jfecdl", "alcailejf", "afeabfcdl", "cbfcficileif", "kdlkbdjfe", "ejfaibikbilk", "feafalflklad",
    "feifikkil", "jhifhj", "jdajfdfhd", "ahiabhbfh", "bfddfh", "jhijfhkbc", "kbcjfafdafhd", "iacicfifhkfc", "ckfcfddfh",
    "hjfhijdlc", "jfhjhcjcachl", "cdlabibhibfh", "lcblbhhbf", "jfiifhkbdkdl", "fhafajhlabaklka", "lkaladkfaiahfha",
    "lkfhlf", "kgf", "aidfkg", "jabfkg", "bidbjifkg", "bgfcgb", "bgfbcgdai", "jgfjagacg", "fjificfcgdci", "cdlkgf",
    "lailcakgf", "abjcdlfkg", "fkgbjcjlcjil", "gdlgfdfbd", "ailalfafbflg", "dlgadgagfafj", "gfjgjllji", "fkgehi",
    "edaehdgfk", "bjafkgieh", "kgfbjhbhdhje", "gbcgfbehi", "bcffcgdaedeh", "iehjafagfacg", "hdjhjedcjfjgcgj",
    "dlchiekgf", "fkgehcecachl", "abjehicdlfkg", "jcbjlcjelhlefkg", "iehdlfdfbflg", "fblflgbalhleael",
    "afjagfadglgdieh", "gfjgjlehjhlj", "kejgek", "ekgejkaid", "kabkgagea", "idbibgigegbk", "bejbcecge", "daibcjcejcge",
    "aceecg", "idciceecg", "kejkgelcd", "aiccilejkekg", "dlcabgagegbk", "gebgbkeibcblilb", "jgejdgjbdlgd",
    "ilbibalgbjbegeb", "dlgdgaage", "geilgi", "hkghikijk", "ahdakhajkghk", "kghbkhbhibia", "kghkhbbhd", "bcgbgibijigh",
    "cgjcjbghjajdhdj", "hiahaggac", "hdcghc", "cdlkgikijigh", "cahchlajhghkjkh", "biabhibkhghkcdl", "lcblbhkgbghb",
    "ijgighjbglgdbdg", "ajblgh", "hiahagdlalga", "hlg", "hgl", "dailhg", "abjlhg", "ibjidblhg", "kbcglh", "bckdaiglh",
    "cjackjglh", "glhckdkidkji", "hcdgch", "haihgagca", "chgcdhabj", "bgcbigbjiihg", "khgkbhbdh", "khgbhkbihbai",
    "adhahkakjgkh", "hgkhkiikj", "gielig", "dgldagaeg", "igliegjab", "jegjgdjdbldg", "gieglickb", "bckdalaglaeg",
    "elieglacjckj", "kjdkdcjedldgegd", "icdiecegc", "aecegc", "bjacdecegedi", "bjebecceg", "ibdigbieggkb", "kbakaggae",
    "egdedigkdadjkjd", "kjegke", "ejfhgl", "aidejflhg", "fabfeahgl", "lhgidedfedbf", "jfekbchgl", "glhbckaidejf",
    "hglfekeckeac", "deidfedcfkfclhg", "hcdhgcfej", "jfeaigagcgih", "dgcdhgbfafea", "gcigihcbieifbfi", "jfekbgbhgbdh",
    "bgkbhgbahihajfe", "eakekfadkgkhdhk", "hgkhkifekeik", "gjfgljlij", "dglagdafgajf", "aliaflabffgl", "gldgdffdb",
    "bckjfljlilfg", "aldaglajgfgjbck", "liflfgiafkfcacf", "gldgdfckdkfd", "fijfcifgcdic", "jfgjgaagc",
    "bfibiafgidicgci", "bfgcbg", "bdgbgkdigfgjijg", "kbakagjfafga", "adifgk", "kfg", "lfkhfl", "lfklhfida", "flhfklbja",
    "khfklhjibidb", "lbclhbhfb", "aidbchbhfhcl", "jhfjchjacclh", "hfchclfjcdcijic", "cfkcdfdhf", "icaifcihfkcf",
    "jabfkdfdhdkc", "jicjcbihckcfhfc", "bdfdhf", "aihahbbhf", "jadjdffdh", "jihfjh", "fiefkikli", "faeflafkllda",
    "abjiekiklkef", "klekefldejebdbe", "cfbcifcliefi", "aelaldeflclbfbl", "acfafjclfefilif", "jefcld", "cfkdfcdefdie",
    "fkcfceeca", "dkcdfkdifefiabj", "fkcfcebjcjec", "iefifddfb", "aefbaf", "iefifdjafadf", "jef", "elhejljkl",
    "aidejhjlhjkl", "bklblebeahel", "dbedeibkehelkle", "elhjlejcljbc", "jhejlhjblclbaid", "lheleccea", "lhelecidedce",
    "cjkchjcdhhej", "jkhjhekchihacah", "dhkdkchekbkaeak", "bkcihe", "ejbebhhbd", "ejbebhaibihb", "eadhed", "eih",
    "jkikli", "dajdjlljk", "abkakiikl", "dbkldk", "bclbljjli", "dajdjlbcjclj", "aclial", "dcl", "cdicikkij", "jkcajc",
    "cdicikabibki", "bkc", "bdijbi", "ajb", "adi", "",
};

static const char *const LEWINER[256] = {
    "", "aid", "abj", "bidjib", "bck", "kdckidkbaika", "jckacj", "cidckikji", "dlc", "alcila", "ladljalcbjlb",
    "blcbjljil", "dkblkd", "akbaikilk", "djadljlkj", "jikkil", "ehi", "edahde", "hjehbjhiabha", "ebjehbhdb", "bckieh",
    "ebabekhkekhcdch", "ciaichkhchkejek", "ckjcjhchdhje", "chlcehcdieci", "lehlcecae", "ihlhiejeiajijabdbabdclcdild",
    "ehljeljlcjcb", "dibebibekhkekhl", "blkbelbaehle", "adileheljkjl", "ehleljjlk", "jfe", "deidfedajfdj", "afebfa",
    "ifeidfdbf", "ekfeckejbceb", "jeiejfkfjbkjkbcacbcadidajia", "fckfeceac", "ckfdcfdfedei", "jfecdl",
    "ajcfcjcflelflei", "fcbcflelfledade", "cbfcficileif", "djbjdeledelfkfl", "bajifefiklki", "feafalflklad",
    "feifikkil", "jhifhj", "jdajfdfhd", "ahiabhbfh", "bfddfh", "hkfkhcichcibjbi", "bajckdfdkdfh", "iacicfifhkfc",
    "ckfcfddfh", "hlfcflfcjdjcjdi", "jfhjhcjcachl", "iadblclbhfhb", "lcblbhhbf", "hkfkhljbidib",
    "hmfhjmjhalahalbmbllkmmkfjbm", "hmfmifafifakdkakdmmlkhlmmdi", "lkfhlf", "kgf", "aidfkg", "gbkgabjagjgf",
    "bkdgdkdgifigifj", "bgfcgb", "gdcdgifigifabaf", "jgfjagacg", "fjificfcgdci", "flgfdlfkcdfc", "akckafifafiglgi",
    "kfjfkglgkclklcdbdcdbajabkjb", "cbkjgfgjlilj", "gdlgfdfbd", "ailalfafbflg", "dlgadgagfafj", "gfjgjllji",
    "ighikgiefkif", "efakafakdgdkdgh", "iajbjajbkjkfgfkfgehegehieij", "jefhkgkhbdbh", "ghcichcibebibef", "dchghcebabef",
    "efjhigagigac", "dmhdemedjcjdjcfmfccgmmghefm", "kcldlcldilihehihegfgegfkgkl", "ghlfkecekeca", "ghlkcbadiefj",
    "kcblghjef", "lghfieifdbdf", "bmfbgmgblalblahmhaaemmefghm", "iadjeflgh", "fjelgh", "kejgek", "eigdgigdkakdkaj",
    "kabkgagea", "idbibgigegbk", "bejbcecge", "jbacidicegec", "aceecg", "idciceecg", "elgledjdedjckcj", "kajakceiglgi",
    "cbkdlagalage", "emgekmkebibebicmciilmmlgkcm", "jgejdgjbdlgd", "emgmjgbgjgblalblammileimmaj", "dlgdgaage", "geilgi",
    "hkghikijk", "ahdakhajkghk", "kghbkhbhibia", "kghkhbbhd", "bcgbgibijigh", "dmhmahjhahjgbgjgbmmcgdcmmba",
    "hiahaggac", "hdcghc", "lghcdkikdkij", "amcalmlahjhahjgmgjjkmmkclgm", "ghladicbk", "cbkhlg",
    "dmbmlbgblbgjhjgjhmmijdimmhl", "jbaghl", "iadghl", "hlg", "hgl", "gihgaigldagd", "abjlhg", "bldlbgjgbgjhihj",
    "hclhbchgkbhk", "lgkglhihldilidacadacbkbclkc", "clahalahjgjhjgk", "dclkhghkijik", "hcdgch", "haihgagca",
    "hadahjgjhjgbcbg", "bgcbigbjiihg", "khgkbhbdh", "khgbhkbihbai", "adhahkakjgkh", "hgkhkiikj", "gielig", "dgldagaeg",
    "gjejgblbgblaial", "jegjgdjdbldg", "gkebekebicibicl", "ldcakbkagega", "ialclagjejgk", "gmemledeledjcjdjcmmkjgkmmcl",
    "icdiecegc", "aecegc", "adibjcecjceg", "bjebecceg", "ibdigbieggkb", "kbakaggae", "gmegimigdkdgdkamakkjmmjeiam",
    "kjegke", "lfgljflhejle", "ldiaidiajijefejefhghfhglhli", "fgblbgblahalahe", "heiglfdflfdb",
    "jbkckbkclklghglghfefhfejfjk", "heildcbajfgk", "kfgelhlecace", "ldcihekfg", "hedjdedjcfcjcfg", "ihegjfjgacag",
    "fcbcfgadehed", "cmgchmhcibicibemebbfmmfghem", "fgkejhbhjhbd", "jbakfgihe", "ameafmfakdkakdgmgddhmmhefgm", "gkfihe",
    "gjfgljlij", "dglagdafgajf", "aliaflabffgl", "gldgdffdb", "kfgbcjljcjli", "fgkdclbaj",
    "cmamkafakafigifigmmliclmmgk", "ldcfgk", "fijfcifgcdic", "jfgjgaagc", "cmgmdgigdgifafifammbfcbmmad", "bfgcbg",
    "dmbdkmkdgigdgifmfiijmmjbkfm", "bajgkf", "diagkf", "kfg", "lfkhfl", "fihifakafakdldk", "fjhahjhalblalbk",
    "fjhihjlbkbld", "lbclhbhfb", "dclaibhbibhf", "jhfjchjacclh", "fmhflmlfcjcfcjdmdjjimmihldm", "cfkcdfdhf",
    "icaifcihfkcf", "kcbdjajdfhfd", "fmhmkhchkhcibicibmmjifjmmbk", "bdfdhf", "aihahbbhf", "jadjdffdh", "jihfjh",
    "fiefkikli", "faeflafkllda", "jefabikibikl", "bmdmjdedjdelflelfmmklbkmmfj", "cfbcifcliefi",
    "bmfmcflfcfledeledmmaebammdc", "cmacjmjcflfcflemellimmiajem", "efjldc", "cfkdfcdefdie", "fkcfceeca", "efjcbkadi",
    "kcbefj", "iefifddfb", "aefbaf", "efjdia", "jef", "elhejljkl", "ihedaljlaljk", "bklblebeahel",
    "bmdbimibekebekhmhkklmmldihm", "elhjlejcljbc", "heibajdcl", "lheleccea", "heicld", "cjkchjcdhhej",
    "amcmichcichkekhkemmjkajmmei", "amembekebekhchkhcmmdhadmmcb", "kcbhei", "ejbebhhbd", "jbahei", "eadhed", "eih",
    "jkikli", "dajdjlljk", "abkakiikl", "dbkldk", "bclbljjli", "ajbldc", "aclial", "dcl", "cdicikkij", "jkcajc",
    "diakcb", "bkc", "bdijbi", "ajb", "adi", "",
};

typedef struct {
    void *data;
    size_t size, room; /* bytes */
} Pile;

static void *more(Pile *pile, size_t bytes) {
    if (pile->size + bytes > pile->room) {
        size_t room = 2 * pile->room + bytes + (1 << 16);
        void *data = realloc(pile->data, room);
        if (!data) return NULL;
        pile->data = data, pile->room = room;
    }
    pile->size += bytes;
    return (char *)pile->data + pile->size - bytes;
}

typedef struct {
    const float *field;
    Py_ssize_t shape[3];
    double level, origin[3];
    const char *const *table;
    int32_t *layers[2]; /* vertices at the nodes of this plane and of the next, -1 where there is none yet */
    Pile vertices, faces;
} Contour;

static double strength(double value) { return 1.0 / (DBL_EPSILON + fabs(value)); }

/* Vertex on an edge of a cell, or in its middle: weighted by 1 / |value| of the corners, rounded as by scikit-image. */
static int place_vertex(Contour *c, const Py_ssize_t *cell, const double *values, int edge) {
    double at[3] = {0, 0, 0}, *vertex = more(&c->vertices, 3 * sizeof *vertex);
    if (!vertex) return 0;
    if (edge == CENTRE) {
        double sum = 0;
        for (int corner = 0; corner < 8; corner++) {
            double part = strength(values[corner]);
            for (int axis = 0; axis < 3; axis++) at[axis] += CORNERS[corner][axis] * part;
            sum += part;
        }
        for (int axis = 0; axis < 3; axis++) at[axis] /= sum;
    } else {
        double low = strength(values[EDGES[edge].low]), high = strength(values[EDGES[edge].high]);
        for (int axis = 0; axis < 3; axis++) at[axis] = CORNERS[EDGES[edge].low][axis];
        at[EDGES[edge].axis] = high / (low + high);
    }
    for (int axis = 0; axis < 3; axis++)
        vertex[axis] = (double)(float)((double)cell[axis] + at[axis]) + c->origin[axis];
    return 1;
}

static int add_cell(Contour *c, const Py_ssize_t *cell, const char *triangles) {
    double values[8];
    for (int corner = 0; corner < 8; corner++) {
        const int *step = CORNERS[corner];
        Py_ssize_t at = ((cell[0] + step[0]) * c->shape[1] + cell[1] + step[1]) * c->shape[2] + cell[2] + step[2];
        values[corner] = (double)c->field[at] - c->level;
    }
    for (; *triangles; triangles += 3) {
        int32_t *face = more(&c->faces, 3 * sizeof *face);
        if (!face) return 0;
        for (int corner = 0; corner < 3; corner++) {
            int edge = triangles[corner] - 'a', slot = edge == CENTRE ? 3 : EDGES[edge].slot;
            const int *step = CORNERS[edge == CENTRE ? 0 : EDGES[edge].low];
            Py_ssize_t node = (cell[1] + step[1]) * c->shape[2] + cell[2] + step[2];
            int32_t *known = c->layers[step[0]] + node * SLOTS + slot;
            if (*known < 0) {
                *known = (int32_t)(c->vertices.size / (3 * sizeof(double)));
                if (!place_vertex(c, cell, values, edge)) return 0;
            }
            face[2 - corner] = *known;
        }
    }
    return 1;
}

/* Which of the four nodes at the lower end of a cell along k are above the level, as bits of its case. */
static unsigned end_bits(const Contour *c, const float *const *rows, Py_ssize_t k) {
    unsigned bits = 0;
    for (int row = 0; row < 4; row++) bits |= (unsigned)((double)rows[row][k] - c->level > 0) << row;
    return bits;
}

static int march(Contour *c) {
    /* Where a bit of `end_bits` (rows (i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)) goes at k, and at k + 1. */
    static const int NEAR[4] = {0, 3, 4, 7}, FAR[4] = {1, 2, 5, 6};
    unsigned near[16] = {0}, far[16] = {0};
    for (unsigned bits = 0; bits < 16; bits++)
        for (int row = 0; row < 4; row++)
            if (bits >> row & 1) near[bits] |= 1u << NEAR[row], far[bits] |= 1u << FAR[row];
    Py_ssize_t plane = c->shape[1] * c->shape[2], cell[3];
    memset(c->layers[1], 0xFF, sizeof(int32_t) * SLOTS * (size_t)plane);
    for (cell[0] = 0; cell[0] < c->shape[0] - 1; cell[0]++) {
        int32_t *next = c->layers[0];
        c->layers[0] = c->layers[1], c->layers[1] = next;
        memset(next, 0xFF, sizeof(int32_t) * SLOTS * (size_t)plane);
        for (cell[1] = 0; cell[1] < c->shape[1] - 1; cell[1]++) {
            const float *row = c->field + cell[0] * plane + cell[1] * c->shape[2];
            const float *rows[4] = {row, row + c->shape[2], row + plane, row + plane + c->shape[2]};
            unsigned bits = end_bits(c, rows, 0), following;
            for (cell[2] = 0; cell[2] < c->shape[2] - 1; cell[2]++, bits = following) {
                following = end_bits(c, rows, cell[2] + 1);
                const char *triangles = c->table[near[bits] | far[following]];
                if (*triangles && !add_cell(c, cell, triangles)) return 0;
            }
        }
    }
    return 1;
}

/* ------------------------------------------------------------------------------------------------ connectivity */

static int32_t root_of(int32_t *parent, int32_t node) {
    while (parent[node] != node) node = parent[node] = parent[parent[node]];
    return node;
}

/* Join two trees; the lower number becomes the root, so that pieces are numbered by their first member. */
static void join(int32_t *parent, int32_t a, int32_t b) {
    a = root_of(parent, a), b = root_of(parent, b);
    if (a < b) parent[b] = a;
    else parent[a] = b;
}

static int32_t number_pieces(int32_t *parent, int32_t count) {
    int32_t pieces = 0;
    for (int32_t node = 0; node < count; node++) /* a parent is numbered before its children */
        parent[node] = parent[node] == node ? pieces++ : parent[parent[node]];
    return pieces;
}

static void label(const int32_t *faces, int32_t face_count, int32_t *parent, int32_t vertex_count) {
    for (int32_t p = 0; p < vertex_count; p++) parent[p] = p;
    for (int32_t f = 0; f < face_count; f++)
        for (int c = 0; c < 2; c++) join(parent, faces[3 * (size_t)f + c], faces[3 * (size_t)f + c + 1]);
    number_pieces(parent, vertex_count);
}

static int32_t following(int32_t half) { return half - half % 3 + (half + 1) % 3; }

typedef struct {
    int32_t half, end; /* which half-edge it is, and where it leads */
} Leaving;

typedef struct {
    int32_t *first, *twin, *parent;
    Leaving *leaving; /* first[p] to first[p + 1] are those of a vertex */
} Room;

/* The half-edge that runs against each, in `twin`; 0 when one has none, or more than one, or a double. */
static int pair(const Room *room, int32_t vertex_count) {
    for (int32_t start = 0; start < vertex_count; start++)
        for (int32_t s = room->first[start]; s < room->first[start + 1]; s++) {
            int32_t end = room->leaving[s].end, same = 0, against = 0;
            for (int32_t t = room->first[start]; t < room->first[start + 1]; t++) same += room->leaving[t].end == end;
            for (int32_t t = room->first[end]; t < room->first[end + 1]; t++)
                if (room->leaving[t].end == start) against++, room->twin[room->leaving[s].half] = room->leaving[t].half;
            if (start == end || same != 1 || against != 1) return 0;
        }
    return 1;
}

/* Fans (a vertex counts once for each sheet that meets there) and pieces of a closed mesh; 0 for one that is not. */
static int topology(const int32_t *faces, int32_t face_count, int32_t vertex_count, Room *room, int32_t *fans,
                    int32_t *pieces) {
    int32_t half_count = 3 * face_count;
    for (int32_t h = 0; h < half_count; h++) room->first[faces[h] + 1]++;
    for (int32_t p = 0; p < vertex_count; p++) room->first[p + 1] += room->first[p];
    for (int32_t h = half_count - 1; h >= 0; h--)
        room->leaving[--room->first[faces[h] + 1]] = (Leaving){h, faces[following(h)]};
    /* Each entry was moved to the start of its own range: shift them back by one vertex. */
    memmove(room->first, room->first + 1, sizeof(int32_t) * (size_t)vertex_count);
    room->first[vertex_count] = half_count;
    if (!face_count || !pair(room, vertex_count)) return 0;
    for (int32_t f = 0; f < face_count; f++) room->parent[f] = f;
    for (int32_t h = 0; h < half_count; h++) join(room->parent, h / 3, room->twin[h] / 3);
    *pieces = number_pieces(room->parent, face_count);
    /* Round each vertex, from one half-edge that leaves it to the next; -1 marks those that were passed. */
    *fans = 0;
    for (int32_t h = 0; h < half_count; h++) {
        if (room->twin[h] < 0) continue;
        ++*fans;
        for (int32_t at = h; room->twin[at] >= 0;) {
            int32_t next = following(room->twin[at]);
            room->twin[at] = -1;
            at = next;
        }
    }
    return 1;
}

/* ------------------------------------------------------------------------------------------------------ Python */

static PyObject *py_contour(PyObject *module, PyObject *args) {
    Py_buffer field;
    Contour c = {0};
    int lewiner;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*(nnn)dp(ddd)", &field, &c.shape[0], &c.shape[1], &c.shape[2], &c.level, &lewiner,
                          &c.origin[0], &c.origin[1], &c.origin[2]))
        return NULL;
    Py_ssize_t room = field.len / (Py_ssize_t)sizeof(float);
    int fits = room <= INT32_MAX / SLOTS, done = 0;
    for (int axis = 0; axis < 3; axis++) {
        fits = fits && c.shape[axis] > 0 && c.shape[axis] <= room;
        if (fits) room /= c.shape[axis];
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        size_t layer = sizeof(int32_t) * SLOTS * (size_t)(c.shape[1] * c.shape[2]);
        c.field = field.buf, c.table = lewiner ? LEWINER : LORENSEN;
        c.layers[0] = malloc(layer), c.layers[1] = malloc(layer);
        done = c.layers[0] && c.layers[1] && march(&c);
        free(c.layers[0]), free(c.layers[1]);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&field);
    PyObject *made = NULL;
    if (!fits) PyErr_SetString(PyExc_ValueError, "the shape does not fit the buffer");
    else if (!done) PyErr_NoMemory();
    else
        made = Py_BuildValue("(y#y#)", c.vertices.size ? (char *)c.vertices.data : "", (Py_ssize_t)c.vertices.size,
                             c.faces.size ? (char *)c.faces.data : "", (Py_ssize_t)c.faces.size);
    free(c.vertices.data), free(c.faces.data);
    return made;
}

/* Faces and the number of vertices they may name; 0, with an error set, when they name others. */
static int parse(PyObject *args, Py_buffer *faces, int32_t *face_count, int32_t *vertex_count) {
    int count, fits;
    if (!PyArg_ParseTuple(args, "y*i", faces, &count)) return 0;
    size_t corners = (size_t)faces->len / sizeof(int32_t);
    fits = count >= 0 && count < INT32_MAX && corners % 3 == 0 && corners <= INT32_MAX;
    const int32_t *index = faces->buf;
    for (size_t c = 0; fits && c < corners; c++) fits = index[c] >= 0 && index[c] < count;
    *face_count = (int32_t)(corners / 3), *vertex_count = count;
    if (fits) return 1;
    PyBuffer_Release(faces);
    PyErr_SetString(PyExc_ValueError, "a face names a vertex that does not exist");
    return 0;
}

static PyObject *py_labels(PyObject *module, PyObject *args) {
    Py_buffer faces;
    int32_t face_count, vertex_count;
    (void)module;
    if (!parse(args, &faces, &face_count, &vertex_count)) return NULL;
    PyObject *out = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)sizeof(int32_t) * vertex_count);
    if (out) {
        int32_t *parent = (int32_t *)(void *)PyByteArray_AsString(out);
        Py_BEGIN_ALLOW_THREADS
        label(faces.buf, face_count, parent, vertex_count);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&faces);
    return out;
}

static PyObject *py_topology(PyObject *module, PyObject *args) {
    Py_buffer faces;
    int32_t face_count, vertex_count, fans = 0, pieces = 0;
    (void)module;
    if (!parse(args, &faces, &face_count, &vertex_count)) return NULL;
    size_t half = 3 * (size_t)face_count + 1;
    int closed = 0;
    Room room = {calloc((size_t)vertex_count + 1, sizeof(int32_t)), malloc(half * sizeof(int32_t)),
                 malloc(half * sizeof(int32_t)), malloc(half * sizeof(Leaving))};
    int ready = room.first && room.leaving && room.twin && room.parent;
    if (ready) {
        Py_BEGIN_ALLOW_THREADS
        closed = topology(faces.buf, face_count, vertex_count, &room, &fans, &pieces);
        Py_END_ALLOW_THREADS
    }
    free(room.first), free(room.leaving), free(room.twin), free(room.parent);
    PyBuffer_Release(&faces);
    return ready ? Py_BuildValue("(Oii)", closed ? Py_True : Py_False, (int)fans, (int)pieces) : PyErr_NoMemory();
}

static PyMethodDef methods[] = {
    {"contour", py_contour, METH_VARARGS,
     "contour(field, shape, level, lewiner, origin): bytes of float64 (V, 3) vertices and int32 (F, 3) faces of a "
     "float32 field."},
    {"labels", py_labels, METH_VARARGS,
     "labels(faces, vertex_count): bytes of int32 (V,), the piece of each vertex, numbered by their first ones."},
    {"topology", py_topology, METH_VARARGS,
     "topology(faces, vertex_count): closed, fans round vertices, pieces; the numbers mean nothing when not closed."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_surface", "Marching cubes and the connectivity of meshes.", 0, methods, NULL, NULL, NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__surface(void) { return PyModuleDef_Init(&definition); }
