package key

import (
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		ok       bool
	}{
		{"Acme", "Acme", true},
		{" \t\u00a0Acme Inc.\u2003\n", "Acme Inc.", true},
		{"株式会社アクメ", "株式会社アクメ", true},
		{"שלום \u200fAcme", "שלום \u200fAcme", true},
		{strings.Repeat("é", 256), strings.Repeat("é", 256), true},
		{strings.Repeat("é", 257), "", false},
		{"", "", false},
		{" \u3000 ", "", false},
		{"\u200b", "", false},
		{"\ufeff\u00ad", "", false},
		{"🙂", "🙂", true},
		{"42", "42", true},
		{"a\x00b", "", false},
		{"a\nb", "", false},
		{"a\u0085b", "", false},
		{"a\u2028b", "", false},
		{"a\u2029b", "", false},
		{"abc\u202egnp.exe", "", false},
		{"a\u2066b", "", false},
		{"a\xffb", "", false},

		// Nothing of these can be seen.
		{"\u3164", "", false},
		{"\u2800", "", false},
		{"\u115f\u1160", "", false},
		{"\uffa0", "", false},
		{"\u00ad", "", false},
		{"\u034f", "", false},
		{"\ufe0f", "", false},
		{"\u180b", "", false},
		{"\U000e0100", "", false},
		{"\U000e0041\U000e0042", "", false},
		{"\u2063\u2064", "", false},
		{"\u17b4\u17b5", "", false},
		{"\ufffc", "", false},
		{"\U00013441", "", false},
		{"\U0001d159", "", false},
		{"\u3164 \u2800\u00ad", "", false},

		// Nobody sees these in a name, which looks like another.
		{"Ac\u3164me", "", false},
		{"Acme\u3164", "", false},
		{"Ac\u2800me", "", false},
		{"\ufeffAcme", "", false},
		{"Ac\ufeffme", "", false},
		{"Ac\u00adme", "", false},
		{"Ac\u200bme", "", false},
		{"Ac\u2060me", "", false},
		{"Ac\u034fme", "", false},
		{"Ac\u200dme", "", false},
		{"Ac\u200cme", "", false},
		{"А\u200dкме", "", false},
		{"株\u200c式", "", false},
		{"\u200dAcme", "", false},
		{"Acme\U000e0001\U000e0065\U000e006e", "", false},
		{"Acme \U0001f3f4\U000e0068\U000e0069\U000e0064\U000e0065\U000e007f", "", false},
		{"Acme \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067", "", false},
		{"Acme\ufe0f\ufe0e\ufe0f", "", false},
		{"Acme \ufe0f", "", false},
		{"Acme\ufe0f", "", false},
		{"Acme 1\ufe0f", "", false},
		{"‼\ufe0f ℹ\ufe0f ©\ufe0f", "‼\ufe0f ℹ\ufe0f ©\ufe0f", true},
		{"Acme\u200e", "", false},
		{"Ac\u200fme", "", false},
		{"Ac\u061cme", "", false},
		{"של\u202eום", "", false},
		{"Acme\ufff9x", "", false},
		{"Acme\U0001bca0", "", false},
		{"Acme\U000e0180", "", false},
		{"नमस्\u200d\u200d\u200dते", "", false},
		{"🙂\u200d", "", false},
		{"orgd_01h2x_07ELSZgnu18FMTahov29GNUbipw3AHOV2E4DrO", "", false},
		{"CI of https://ann:s3cret@git.example", "", false},

		// Names as people write them.
		{"می\u200cخواهم", "می\u200cخواهم", true},         // Persian
		{"شرکت خانه\u200cها", "شرکت خانه\u200cها", true}, // Persian
		{"क्\u200dष", "क्\u200dष", true},                 // Devanagari
		{"ಕ್\u200cಷ", "ಕ್\u200cಷ", true},                 // Kannada
		{"ශ්\u200dරී ලංකා", "ශ්\u200dරී ලංකා", true},     // Sinhala
		{"അവന്\u200d", "അവന്\u200d", true},               // Malayalam, at the end of a word
		{"র\u200d্যাব", "র\u200d্যাব", true},             // Bengali
		{"שָׁ\u034fּ", "שָׁ\u034fּ", true},               // Hebrew
		{"ᠰᠠᠶᠢᠨ ᠴᠠᠭ\u180eᠠ", "ᠰᠠᠶᠢᠨ ᠴᠠᠭ\u180eᠠ", true},   // Mongolian
		{"ᠡᠷᠡ\u180bᠭ", "ᠡᠷᠡ\u180bᠭ", true},               // Mongolian, a variant
		{"ភាសា\u200bខ្មែរ", "ភាសា\u200bខ្មែរ", true},     // Khmer
		{"葛\U000e0100城市", "葛\U000e0100城市", true},         // Japanese, a variant
		{"ⵣ Amaziɣ", "ⵣ Amaziɣ", true},
		{"Ἀκαδημία", "Ἀκαδημία", true},
		{"الشركة \u200e(ACME)\u200e", "الشركة \u200e(ACME)\u200e", true}, // Arabic with Latin
		{"عربي \u061cACME", "عربي \u061cACME", true},
		{"۞\u0600١٢", "۞\u0600١٢", true}, // a number sign, which is drawn
		{"⠁⠉⠍⠑\u2800⠊⠝⠉", "⠁⠉⠍⠑\u2800⠊⠝⠉", true},
		{"👩\u200d💻 Tools", "👩\u200d💻 Tools", true},
		{"👩🏽\u200d💻", "👩🏽\u200d💻", true},
		{"🏳\ufe0f\u200d🌈", "🏳\ufe0f\u200d🌈", true},
		{"👩\u200d❤\ufe0f\u200d👨", "👩\u200d❤\ufe0f\u200d👨", true},
		{"1\ufe0f\u20e3 Team", "1\ufe0f\u20e3 Team", true},
		{"🇩🇪 GmbH", "🇩🇪 GmbH", true},
		{"🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f FA", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f FA", true},
		{"🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", true},
		{"🏴 Pirates", "🏴 Pirates", true},
	} {
		got, err := CheckName("/name", tt.in)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("CheckName(%q) = %q, %v; want %q, ok %v", tt.in, got, err, tt.want, tt.ok)
		}
		if err != nil && (len(err.Fields) != 1 || err.Fields[0].Pointer != "/name") {
			t.Errorf("CheckName(%q) blames %v, want /name", tt.in, err.Fields)
		}
	}
	for _, tt := range []struct{ name, what string }{
		{"Ac\ufeffme", "U+FEFF at character 3"}, {"a\u202eb", "U+202E at character 2"}, {"Acme\U000e0041", "U+E0041 at character 5"},
	} {
		if _, err := CheckName("/name", tt.name); err == nil || !strings.Contains(err.Fields[0].Detail, tt.what) {
			t.Errorf("CheckName(%q) = %v, want one that names %s", tt.name, err, tt.what)
		}
	}
}
